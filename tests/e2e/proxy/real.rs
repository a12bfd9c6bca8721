//! Real programs as backends, where they are installed: Node's and Python's HTTP servers, and nginx.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::{Engine, proxy};
use crate::support::{Client, End, PATIENCE, Server, Tree, noise, on_both, wait_until};

/// A program that runs until this is dropped.
struct Program {
    child: Child,
    address: String,
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether a program can be started; if not, the test says that it is skipped.
fn installed(program: &str, arguments: &[&str]) -> bool {
    let result = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    let works = result.is_ok_and(|status| status.success());
    if !works {
        crate::support::skipped(format_args!("`{program}` is not installed"));
    }
    works
}

/// Starts a program that writes its port as the first line.
fn naming_its_port(command: &mut Command) -> Program {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("it starts");
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe"));
    let mut line = String::new();
    lines.read_line(&mut line).expect("its port");
    let port: u16 = line.trim().parse().expect("its port");
    Program {
        child,
        address: format!("127.0.0.1:{port}"),
    }
}

/// An application: echoes bodies, streams, hints, and switches to WebSocket.
const APPLICATION: &str = r#"
const http = require('http');
const crypto = require('crypto');
const server = http.createServer((request, response) => {
  if (request.url === '/stream') {
    response.writeHead(200, { 'Content-Type': 'text/plain', Trailer: 'X-Sum' });
    let n = 0;
    const next = () => {
      if (n === 200) { response.addTrailers({ 'X-Sum': '200' }); return response.end(); }
      response.write('line ' + n++ + '\n', () => setImmediate(next));
    };
    return next();
  }
  if (request.url === '/hints') {
    response.writeEarlyHints({ link: '</a.css>; rel=preload' });
    return response.end('hinted');
  }
  if (request.url === '/fields') {
    return response.end(JSON.stringify(request.headers));
  }
  response.writeHead(200, { 'Content-Type': 'application/octet-stream' });
  request.pipe(response);
});
const accept = (key) => crypto.createHash('sha1')
  .update(key + '258EAFA5-E914-47DA-95CA-C5AB0DC85B11').digest('base64');
let ws = null;
try { ws = require('ws'); } catch (error) { /* it is not installed: by hand, below */ }
if (ws) {
  const sockets = new ws.WebSocketServer({ server });
  sockets.on('connection', (socket) => {
    socket.on('message', (data, binary) => socket.send(data, { binary }));
  });
} else {
  server.on('upgrade', (request, socket, head) => {
    socket.write('HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n' +
      'Sec-WebSocket-Accept: ' + accept(request.headers['sec-websocket-key']) + '\r\n\r\n');
    let buffer = head;
    const echo = (data) => {
      buffer = Buffer.concat([buffer, data]);
      for (;;) {
        if (buffer.length < 6) return;
        let length = buffer[1] & 127, at = 2;
        if (length === 126) { if (buffer.length < 8) return; length = buffer.readUInt16BE(2); at = 4; }
        if (buffer.length < at + 4 + length) return;
        const mask = buffer.subarray(at, at + 4);
        const data = Buffer.from(buffer.subarray(at + 4, at + 4 + length)).map((b, i) => b ^ mask[i % 4]);
        socket.write(Buffer.concat([buffer.subarray(0, 1), frame(length), data]));
        if ((buffer[0] & 15) === 8) return socket.end();
        buffer = buffer.subarray(at + 4 + length);
      }
    };
    const frame = (length) => length < 126 ? Buffer.from([length])
      : Buffer.from([126, length >> 8, length & 255]);
    socket.on('data', echo);
    socket.on('error', () => socket.destroy());
    echo(Buffer.alloc(0));
  });
}
server.listen(0, '127.0.0.1', () => console.log(server.address().port));
"#;

/// The application, with what was installed for the tests in reach.
fn node() -> Option<Program> {
    installed("node", &["--version"]).then(|| {
        let modules = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/node/node_modules");
        naming_its_port(
            Command::new("node")
                .args(["-e", APPLICATION])
                .env("NODE_PATH", modules),
        )
    })
}

fn in_front(engine: Engine, program: &Program) -> Server {
    proxy(engine, &[&program.address], "")
}

#[test]
fn node_in_front_of_which_everything_works() {
    let Some(node) = node() else { return };
    on_both(|engine| {
        let server = in_front(engine, &node);
        let mut client = server.connect();
        for chunked in [false, true] {
            for length in [0, 1, 100_000, 3 << 20] {
                let body = noise(length);
                let mut request = b"POST /echo HTTP/1.1\r\nHost: a\r\n".to_vec();
                if chunked {
                    request.extend(b"Transfer-Encoding: chunked\r\n\r\n");
                    for piece in body.chunks(30_000) {
                        request.extend(format!("{:x}\r\n", piece.len()).as_bytes());
                        request.extend(piece);
                        request.extend(b"\r\n");
                    }
                    request.extend(b"0\r\n\r\n");
                } else {
                    request.extend(format!("Content-Length: {length}\r\n\r\n").as_bytes());
                    request.extend(&body);
                }
                // The echo comes while the request is still on its way.
                let mut socket = client.socket().try_clone().expect("a descriptor");
                let sender = std::thread::spawn(move || {
                    use std::io::Write as _;
                    socket.write_all(&request).expect("it goes out");
                });
                assert!(client.response().body == body, "{length} {chunked}");
                sender.join().expect("it was sent");
            }
        }
        let response = client.get_with("/stream", "TE: trailers\r\nConnection: TE\r\n");
        assert_eq!(response.text().lines().count(), 200);
        assert_eq!(response.trailers, [("X-Sum".to_owned(), "200".to_owned())]);
        let hints = client.get("/hints");
        assert_eq!(
            (hints.status, hints.must("link")),
            (103, "</a.css>; rel=preload")
        );
        assert_eq!(client.response().text(), "hinted");
        client.send(
            "POST /echo HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n",
        );
        assert_eq!(client.response().status, 100);
        client.send("hello");
        assert_eq!(client.response().text(), "hello");
        let fields: serde_json::Value =
            serde_json::from_slice(&client.get("/fields").body).expect("JSON");
        assert_eq!(fields["x-forwarded-for"], "127.0.0.1");
        assert_eq!(fields["host"], "localhost");
        assert_eq!(client.request("HEAD", "/fields", "").status, 200);
    });
}

/// A masked frame, as clients send them (RFC 6455 §5.2).
fn frame(opcode: u8, data: &[u8]) -> Vec<u8> {
    let mask = [1, 2, 3, 4];
    let mut frame = vec![0x80 | opcode];
    match u8::try_from(data.len()) {
        Ok(length) if length < 126 => frame.push(0x80 | length),
        _ => {
            frame.push(0x80 | 126);
            frame.extend((data.len() as u16).to_be_bytes());
        }
    }
    frame.extend(mask);
    frame.extend(data.iter().zip(mask.iter().cycle()).map(|(d, m)| d ^ m));
    frame
}

/// Reads a frame of a server: opcode and data.
fn read_frame(client: &mut Client) -> (u8, Vec<u8>) {
    let head = client.exactly(2);
    let length = match head[1] {
        126 => {
            let length = client.exactly(2);
            usize::from(u16::from_be_bytes([length[0], length[1]]))
        }
        length => usize::from(length),
    };
    (head[0] & 15, client.exactly(length))
}

#[test]
fn node_echoes_over_websockets() {
    let Some(node) = node() else { return };
    on_both(|engine| {
        let server = in_front(engine, &node);
        let mut client = server.connect();
        // The example of RFC 6455 §1.3.
        client.send(
            "GET /chat HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
        );
        let response = client.response();
        assert_eq!(response.status, 101);
        assert_eq!(
            response.must("Sec-WebSocket-Accept"),
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
        for length in [0, 5, 125, 126, 60_000] {
            let data = noise(length);
            client.send(frame(2, &data));
            let (opcode, echoed) = read_frame(&mut client);
            assert!(opcode == 2 && echoed == data, "{length}");
        }
        client.send(frame(1, b"hello"));
        assert_eq!(read_frame(&mut client), (1, b"hello".to_vec()));
        client.send(frame(8, &1000_u16.to_be_bytes()));
        let (opcode, code) = read_frame(&mut client);
        assert_eq!((opcode, code), (8, 1000_u16.to_be_bytes().to_vec()));
        assert_eq!(client.end(), End::Closed);
    });
}

const FILES: &str = "
import functools, http.server, socketserver, sys
handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=sys.argv[1])
handler.func.protocol_version = sys.argv[2]
class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
with Server(('127.0.0.1', 0), handler) as server:
    print(server.server_address[1], flush=True)
    server.serve_forever()
";

#[test]
fn python_serves_files_through_it() {
    if !installed("python3", &["--version"]) {
        return;
    }
    let tree = Tree::with(&[("a.txt", "hello"), ("dir/b.txt", "b")]);
    tree.write("large.bin", noise(5 << 20));
    for protocol in ["HTTP/1.0", "HTTP/1.1"] {
        let mut command = Command::new("python3");
        command.args(["-c", FILES]).arg(tree.root()).arg(protocol);
        let python = naming_its_port(&mut command);
        on_both(|engine| {
            let server = in_front(engine, &python);
            let mut client = server.connect();
            for _ in 0..3 {
                assert_eq!(client.get("/a.txt").text(), "hello", "{protocol}");
                assert!(client.get("/large.bin").body == noise(5 << 20));
                let head = client.request("HEAD", "/large.bin", "");
                assert_eq!(head.must("Content-Length"), (5 << 20).to_string());
                assert_eq!(client.get("/missing").status, 404);
                let moved = client.get("/dir");
                assert_eq!((moved.status, moved.must("Location")), (301, "/dir/"));
                assert!(client.get("/dir/").text().contains("b.txt"));
                let modified = client.get("/a.txt");
                let since = format!("If-Modified-Since: {}\r\n", modified.must("Last-Modified"));
                assert_eq!(client.get_with("/a.txt", &since).status, 304);
                client.send("POST /a.txt HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab");
                assert_eq!(client.response().status, 501);
            }
        });
    }
}

/// nginx with this configuration, once it listens.
fn nginx(tree: &Tree) -> Program {
    let outside = tree.outside().display().to_string();
    // It can't choose a free port by itself.
    let socket = format!("{outside}/nginx.sock");
    let address = format!("unix:{socket}");
    let root = tree.root().display().to_string();
    let config = format!(
        "daemon off; master_process off; pid {outside}/nginx.pid; error_log stderr crit;\n\
         events {{ }}\n\
         http {{ access_log off; client_body_temp_path {outside}/body; proxy_temp_path {outside}/p;\n\
         fastcgi_temp_path {outside}/f; uwsgi_temp_path {outside}/u; scgi_temp_path {outside}/s;\n\
         server {{ listen {address}; root {root}; keepalive_requests 7;\n\
         location /close {{ keepalive_timeout 0; return 200 closed; }}\n\
         location /back/ {{ proxy_pass http://{address}:/; proxy_buffering off; }} }} }}\n"
    );
    let file = tree.outside().join("nginx.conf");
    fs::write(&file, config).expect("its configuration");
    let child = Command::new("nginx")
        .arg("-c")
        .arg(&file)
        .args(["-p", &outside])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("nginx starts");
    let program = Program { child, address };
    wait_until("nginx listens", PATIENCE, || {
        UnixStream::connect(&socket).is_ok()
    });
    program
}

#[test]
fn nginx_serves_files_and_chunks_through_it() {
    if !installed("nginx", &["-v"]) {
        return;
    }
    let tree = Tree::with(&[("a.txt", "hello")]);
    tree.write("large.bin", noise(5 << 20));
    let nginx = nginx(&tree);
    on_both(|engine| {
        let server = in_front(engine, &nginx);
        let mut client = server.connect();
        // It closes each connection after seven requests, and says so with the last one.
        for _ in 0..50 {
            assert_eq!(client.get("/a.txt").text(), "hello");
        }
        for target in ["/large.bin", "/back/large.bin"] {
            assert!(client.get(target).body == noise(5 << 20), "{target}");
            let part = client.get_with(target, "Range: bytes=100000-299999\r\n");
            assert_eq!(part.status, 206, "{target}");
            assert!(part.body == noise(5 << 20)[100_000..300_000], "{target}");
        }
        assert_eq!(client.get("/close").text(), "closed");
        assert_eq!(client.get("/missing").status, 404);
        client.send("POST /a.txt HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab");
        assert_eq!(client.response().status, 405);
        let etag = client.get("/a.txt").must("ETag").to_owned();
        let unchanged = client.get_with("/a.txt", &format!("If-None-Match: {etag}\r\n"));
        assert_eq!(unchanged.status, 304);
    });
}
