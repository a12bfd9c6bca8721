//! The control server over real sockets, its clock in the hands of the test.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;

use super::*;
use crate::supervisor::control::client;
use crate::supervisor::control::protocol::{Command, REPLY_BYTES_MAX};

/// How long a test waits for something that has to happen.
const PATIENCE: Duration = Duration::from_secs(10);

struct World {
    directory: tempfile::TempDir,
    server: ControlServer,
    now: Instant,
}

impl World {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let server = ControlServer::bind(&directory.path().join("a.sock")).unwrap();
        Self {
            directory,
            server,
            now: Instant::now(),
        }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("a.sock")
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.path()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    fn send(&self, command: Command) -> UnixStream {
        let mut stream = self.connect();
        stream.write_all(&Request::new(command).to_line()).unwrap();
        stream
    }

    fn ready(&mut self) -> Vec<(RequestId, Request)> {
        self.server.ready(self.now)
    }

    /// The next request.
    fn request(&mut self) -> (RequestId, Command) {
        let mut requests = self.ready();
        assert_eq!(requests.len(), 1, "{requests:?}");
        let (id, request) = requests.remove(0);
        (id, request.command)
    }

    fn answer(&mut self, id: RequestId, reply: &Reply) {
        self.server.answer(id, reply, self.now);
    }

    fn connections(&self) -> usize {
        self.server.connections.len()
    }
}

/// All that comes until the end of the connection, read as a reply.
fn reply(mut stream: UnixStream) -> Reply {
    let mut line = Vec::new();
    match stream.read_to_end(&mut line) {
        Ok(_) => {}
        // It closed before it read all that was sent.
        Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
    }
    Reply::parse(&line).unwrap()
}

#[test]
fn a_request_is_given_out_and_its_answer_sent() {
    let mut world = World::new();
    assert_eq!(world.ready(), []);
    let first = world.send(Command::Reload);
    let (first_id, command) = world.request();
    assert_eq!(command, Command::Reload);
    let second = world.send(Command::Status);
    let (second_id, command) = world.request();
    assert_eq!(command, Command::Status);
    assert!(world.server.is_waiting(first_id));
    let answer = Reply::done("ok\n").with_data(serde_json::json!({"epoch": 3}));
    world.answer(second_id, &answer);
    world.answer(first_id, &Reply::failed(78, "bad\n"));
    // Once is enough.
    world.answer(first_id, &answer);
    assert_eq!(reply(second), answer);
    assert_eq!(reply(first).exit, 78);
    assert_eq!(world.connections(), 0);
    assert_eq!(world.server.deadline(), None);
}

#[test]
fn a_request_may_come_in_pieces() {
    let mut world = World::new();
    let mut stream = world.connect();
    let line = Request::new(Command::Plan).to_line();
    for byte in &line[..line.len() - 1] {
        stream.write_all(&[*byte]).unwrap();
        assert_eq!(world.ready(), []);
    }
    stream
        .write_all(b"\nand what comes after it is nobody's")
        .unwrap();
    let (id, command) = world.request();
    assert_eq!(command, Command::Plan);
    world.answer(id, &Reply::done("nothing would change\n"));
    assert_eq!(reply(stream).text, "nothing would change\n");
}

#[test]
fn a_bad_request_is_refused_and_nobody_hears_of_it() {
    let mut world = World::new();
    let mut stream = world.connect();
    stream
        .write_all(b"{\"version\":7,\"command\":\"reload\"}\n")
        .unwrap();
    assert_eq!(world.ready(), []);
    assert!(reply(stream).text.contains("version 7"));
    assert_eq!(world.connections(), 0);
}

#[test]
fn a_request_that_is_too_long_is_refused() {
    let mut world = World::new();
    let mut stream = world.connect();
    stream.set_nonblocking(true).unwrap();
    let part = [b' '; 4096];
    for _ in 0..REQUEST_BYTES_MAX / part.len() {
        stream.write_all(&part).unwrap();
        assert_eq!(world.ready(), []);
    }
    stream.set_nonblocking(false).unwrap();
    assert!(reply(stream).text.contains("64 KiB"));
    assert_eq!(world.connections(), 0);
}

#[test]
fn one_connection_too_many_is_told_so() {
    let mut world = World::new();
    let mut held: Vec<UnixStream> = Vec::new();
    for _ in 0..CONNECTIONS_MAX {
        held.push(world.connect());
        world.ready();
    }
    let extra = world.send(Command::Status);
    assert_eq!(world.ready(), []);
    assert!(reply(extra).text.contains("32 control connections"));
    assert_eq!(world.connections(), CONNECTIONS_MAX);
    held.pop();
    world.ready();
    let _next = world.send(Command::Status);
    assert_eq!(world.request().1, Command::Status);
}

#[test]
fn a_caller_without_a_request_is_sent_away_in_time() {
    let mut world = World::new();
    let stream = world.connect();
    world.ready();
    assert_eq!(world.server.deadline(), Some(world.now + REQUEST_TIME));
    world.now += REQUEST_TIME - Duration::from_millis(1);
    world.ready();
    assert_eq!(world.connections(), 1);
    world.now += Duration::from_millis(1);
    world.ready();
    assert_eq!(world.connections(), 0);
    assert!(reply(stream).text.contains("within 10 s"));
}

#[test]
fn a_long_answer_is_sent_as_it_is_taken_and_not_for_ever() {
    let mut world = World::new();
    let long = Reply::done("x".repeat(REPLY_BYTES_MAX / 2));
    let mut stream = world.send(Command::Status);
    let (id, _) = world.request();
    world.answer(id, &long);
    let wants_out = world.server.fds().any(|(_, flags)| flags == PollFlags::OUT);
    assert!(wants_out, "it doesn't fit into the socket");
    let mut line = Vec::new();
    let mut part = vec![0; 1 << 20];
    while line.last() != Some(&b'\n') {
        let length = stream.read(&mut part).unwrap();
        line.extend_from_slice(&part[..length]);
        world.ready();
    }
    assert_eq!(Reply::parse(&line).unwrap(), long);

    let _slow = world.send(Command::Status);
    let (id, _) = world.request();
    world.answer(id, &long);
    assert_eq!(world.server.deadline(), Some(world.now + REPLY_TIME));
    world.now += REPLY_TIME;
    world.ready();
    assert_eq!(world.connections(), 0);
}

#[test]
fn an_answer_may_take_long_and_whoever_leaves_is_forgotten() {
    let mut world = World::new();
    let stays = world.send(Command::Quit);
    let (stays_id, _) = world.request();
    let leaves = world.send(Command::Reload);
    let (leaves_id, _) = world.request();
    // Half a close isn't a farewell: the caller still reads.
    stays.shutdown(std::net::Shutdown::Write).unwrap();
    drop(leaves);
    world.now += Duration::from_secs(3600);
    world.ready();
    assert!(world.server.is_waiting(stays_id));
    assert!(!world.server.is_waiting(leaves_id));
    world.answer(leaves_id, &Reply::done(""));
    world.answer(stays_id, &Reply::done("stopped\n"));
    assert_eq!(reply(stays).text, "stopped\n");
}

#[test]
fn another_user_is_refused() {
    let mut world = World::new();
    // As if the master ran as somebody else; root may command any.
    world.server.own_uid = rustix::process::geteuid().as_raw() + 1;
    let stream = world.send(Command::Stop);
    let requests = world.ready();
    if rustix::process::geteuid().is_root() {
        assert_eq!(requests.len(), 1);
    } else {
        assert_eq!(requests, []);
        assert!(reply(stream).text.contains("may not command"));
    }
}

#[test]
fn the_file_is_private_and_goes_with_the_server() {
    let world = World::new();
    let mode = world.path().metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let path = world.path();
    drop(world.server);
    assert!(!path.exists());
}

#[test]
fn a_dead_socket_is_replaced_a_live_one_is_named() {
    let world = World::new();
    let error = ControlServer::bind(&world.path()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    let own = format!("(process {})", std::process::id());
    let text = error.to_string();
    assert!(text.contains(&own) && text.contains("a.sock"), "{text}");

    let dead = world.directory.path().join("dead.sock");
    drop(std::os::unix::net::UnixListener::bind(&dead).unwrap());
    let server = ControlServer::bind(&dead).unwrap();
    UnixStream::connect(&dead).unwrap();
    drop(server);

    std::fs::write(&dead, "precious").unwrap();
    let error = ControlServer::bind(&dead).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
    assert_eq!(std::fs::read(&dead).unwrap(), b"precious");

    let long = world.directory.path().join("x".repeat(120));
    let error = ControlServer::bind(&long).unwrap_err();
    assert!(error.to_string().contains("107 bytes"), "{error}");
}

#[test]
fn callers_go_through_an_upgrade() {
    let mut world = World::new();
    let waits = world.send(Command::Upgrade);
    let (id, _) = world.request();
    let mut half = world.connect();
    half.write_all(b"{\"version\":1,").unwrap();
    world.ready();

    // Descriptors as they are, the rest as text, as an exec has it; the old server must not clean up.
    let exported = world.server.export().unwrap();
    let texts: Vec<String> = exported
        .callers
        .iter()
        .map(|(caller, _)| serde_json::to_string(caller).unwrap())
        .collect();
    let sockets = exported.callers.into_iter().map(|(_, socket)| socket);
    let callers = texts.iter().map(|text| serde_json::from_str(text).unwrap());
    let exported = Exported {
        callers: callers.zip(sockets).collect(),
        ..exported
    };
    let new = ControlServer::import(exported, world.now).unwrap();
    let old = mem::replace(&mut world.server, new);
    mem::forget(old.bound.file);
    drop((old.bound.socket, old.connections));

    assert!(world.server.is_waiting(id));
    half.write_all(b"\"command\":\"status\"}\n").unwrap();
    let (half_id, command) = world.request();
    assert_eq!(command, Command::Status);
    assert!(half_id > id);
    let later = world.send(Command::Plan);
    let (later_id, _) = world.request();
    assert!(later_id > half_id, "no number is used twice");
    world.answer(later_id, &Reply::done("plan\n"));
    world.answer(half_id, &Reply::done("status\n"));
    world.answer(id, &Reply::done("upgraded\n"));
    assert_eq!(reply(waits).text, "upgraded\n");
    assert_eq!(reply(half).text, "status\n");
    assert_eq!(reply(later).text, "plan\n");
}

#[test]
fn an_upgrade_that_fails_leaves_all_as_it_was() {
    let mut world = World::new();
    let waits = world.send(Command::Upgrade);
    let (id, _) = world.request();
    drop(world.server.export().unwrap());
    assert!(world.path().exists());
    world.answer(id, &Reply::failed(1, "rolled back\n"));
    assert_eq!(reply(waits).exit, 1);
    let _again = world.send(Command::Status);
    world.request();
}

/// The master's loop in small: polls what the server names, for as long as it says, until a request
/// has come.
fn serve_one(server: &mut ControlServer) -> (RequestId, Request) {
    let until = Instant::now() + PATIENCE;
    loop {
        let now = Instant::now();
        assert!(now < until, "no request came");
        let wake = server
            .deadline()
            .map_or(until, |deadline| deadline.min(until));
        let wait = Timespec::try_from(wake.saturating_duration_since(now)).unwrap();
        let mut polled: Vec<PollFd<'_>> = server
            .fds()
            .map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags))
            .collect();
        poll(&mut polled, Some(&wait)).unwrap();
        drop(polled);
        if let Some(request) = server.ready(Instant::now()).pop() {
            return request;
        }
    }
}

#[test]
fn the_command_line_gets_its_answer_from_a_polled_server() {
    let mut world = World::new();
    let paths = [world.path()];
    let caller = std::thread::spawn(move || client::ask(&paths, &Request::new(Command::Status)));
    let (id, request) = serve_one(&mut world.server);
    assert_eq!(request.command, Command::Status);
    let long = Reply::done("y".repeat(1 << 20));
    world.answer(id, &long);
    let until = Instant::now() + PATIENCE;
    while world.connections() > 0 {
        assert!(Instant::now() < until, "the answer isn't taken");
        world.ready();
        std::thread::yield_now();
    }
    assert_eq!(caller.join().unwrap().unwrap(), long);
}

#[test]
fn the_end_of_the_server_is_the_answer_to_stop() {
    for command in [Command::Stop, Command::Quit] {
        let mut world = World::new();
        let paths = [world.path()];
        let caller = std::thread::spawn(move || client::ask(&paths, &Request::new(command)));
        serve_one(&mut world.server);
        drop(world.server);
        assert_eq!(caller.join().unwrap().unwrap().exit, 0);
    }
}
