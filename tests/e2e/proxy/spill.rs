//! Bodies that exceed the memory of their buffer, and wait in a file.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::backend::{Backend, Gate, ok};
use super::{proxy, site, upstream};
use crate::support::{
    Client, Engine, PATIENCE, Server, Setup, descriptors, memory, noise, on_both, wait_for,
    wait_until,
};

/// A body that no socket buffers hold.
const SIZE: usize = 100 << 20;

/// What is sent over and over.
const PIECE: usize = 1 << 20;

/// How much a worker may grow by while it holds such a body.
const GROWTH_MAX: u64 = 24 << 20;

/// A directory that any user of this machine may write to.
fn directory() -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a temporary directory");
    allow(directory.path(), 0o777);
    directory
}

fn allow(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("permissions");
}

/// The sizes of the files in this directory that the worker has open, whether they have names or not.
fn files(server: &Server, directory: &Path) -> Vec<u64> {
    let of_process = PathBuf::from(format!("/proc/{}/fd", server.worker()));
    let numbers = fs::read_dir(of_process).expect("it runs").flatten();
    let ours = numbers.filter_map(|number| {
        let path = fs::read_link(number.path()).ok()?;
        path.starts_with(directory).then_some(())?;
        Some(fs::metadata(number.path()).ok()?.len())
    });
    ours.collect()
}

/// Has the kernel forget what it has of these files in memory, so that it has to read them again.
fn evict(server: &Server, directory: &Path) {
    let of_process = PathBuf::from(format!("/proc/{}/fd", server.worker()));
    for number in fs::read_dir(of_process).expect("it runs").flatten() {
        let is_ours = fs::read_link(number.path()).is_ok_and(|path| path.starts_with(directory));
        // Only root may open what another user has.
        let Some(file) = is_ours
            .then(|| fs::File::open(number.path()).ok())
            .flatten()
        else {
            continue;
        };
        file.sync_all().expect("it is written");
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).expect("advice");
    }
}

fn await_no_files(server: &Server, directory: &Path) {
    wait_until("the files are gone", PATIENCE, || {
        files(server, directory).is_empty()
    });
    let names = fs::read_dir(directory).expect("it is there").count();
    assert_eq!(names, 0, "nothing has a name");
}

fn buffer(lines: &str, directory: &Path) -> String {
    format!("buffer = {{ {lines}, spill = {directory:?} }}")
}

fn slow_client(server: &Server, target: &str) -> Client {
    let mut client = Client::connect_with(server.address(), |socket| {
        socket.set_recv_buffer_size(64 << 10).expect("SO_RCVBUF");
    });
    client.send(format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n"));
    client.await_bytes(1);
    client
}

/// Whether this is the piece, again and again.
fn repeats(body: &[u8], piece: &[u8]) -> bool {
    body.chunks(PIECE).all(|part| *part == piece[..part.len()])
}

/// Answers `/warm`, and everything else with `size` bytes, as the target says; counts what it could send.
fn large(size: usize, sent: &Arc<AtomicU64>, done: &Gate) -> Backend {
    let (sent, done) = (Arc::clone(sent), done.clone());
    let content = noise(PIECE);
    Backend::start(move |connection| {
        while let Some(request) = connection.request() {
            let chunked = request.target == "/chunked";
            if request.target == "/warm" {
                connection.send(ok("warm"));
                continue;
            }
            connection.send(match chunked {
                false => format!("HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n"),
                true => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned(),
            });
            for _ in 0..size / PIECE {
                // Ends of chunks at odd places.
                for part in content.chunks(50_001) {
                    if chunked {
                        connection.send(format!("{:x}\r\n", part.len()));
                    }
                    if !connection.send(part) {
                        return;
                    }
                    sent.fetch_add(part.len() as u64, Ordering::SeqCst);
                    if chunked {
                        connection.send("\r\n");
                    }
                }
            }
            if chunked {
                connection.send("0\r\nX-Sum: of all\r\n\r\n");
            }
            done.open();
        }
    })
}

#[test]
fn a_backend_is_free_long_before_a_slow_client_is_done() {
    on_both(|engine| {
        let (sent, done) = (Arc::default(), Gate::default());
        let backend = large(SIZE, &sent, &done);
        let spill = directory();
        let lines = buffer("response = \"64KiB\"", spill.path());
        // One request at a time: another one is asked when the backend is free.
        let server = upstream(engine, &[backend.name()], "max_conns = 1", &lines);
        assert_eq!(server.connect().get("/warm").text(), "warm");
        let before = memory(server.worker());
        let piece = noise(PIECE);
        for target in ["/length", "/chunked"] {
            let mut client = slow_client(&server, target);
            done.wait();
            // On the same connection: it was given back.
            assert_eq!(server.connect().get("/warm").text(), "warm");
            assert_eq!(backend.connections(), 1, "{target}");
            let kept = files(&server, spill.path());
            assert_eq!(kept.len(), 1, "{target}: {kept:?}");
            assert!(kept[0] > SIZE as u64 * 3 / 4, "{target}: {kept:?}");
            let names = fs::read_dir(spill.path()).unwrap().count();
            assert_eq!(names, 0, "it has no name");
            let grown = memory(server.worker()).saturating_sub(before);
            assert!(grown < GROWTH_MAX, "{target}: {grown} B more");
            evict(&server, spill.path());
            let response = client.response();
            assert_eq!(response.body.len(), SIZE, "{target}");
            assert!(repeats(&response.body, &piece), "{target}: other bytes");
            assert_eq!(response.chunked, target == "/chunked");
            await_no_files(&server, spill.path());
            // And it goes on.
            assert_eq!(client.get("/warm").text(), "warm");
        }
    });
}

#[test]
fn what_comes_slowly_comes_at_once_and_is_never_written() {
    on_both(|engine| {
        let spill = directory();
        let gate = Gate::default();
        let of_script = gate.clone();
        let backend = Backend::start(move |connection| {
            connection.request().expect("a request");
            connection.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
            for event in 0..5 {
                connection.send(format!("7\r\nevent {event}\r\n"));
                of_script.wait();
            }
            connection.send("0\r\n\r\n");
            connection.rest();
        });
        let lines = buffer("response = \"1KiB\"", spill.path());
        let server = proxy(engine, &[backend.name()], &lines);
        let mut client = server.connect();
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        for event in 0..5 {
            client.await_text(&format!("event {event}"));
            assert!(files(&server, spill.path()).is_empty());
            gate.open();
        }
        client.await_text("0\r\n\r\n");
    });
}

#[test]
fn beyond_its_bound_a_response_waits_for_the_client() {
    const TOTAL: usize = 32 << 20;
    const LIMIT: u64 = 3 << 20;
    on_both(|engine| {
        let (sent, done) = (Arc::<AtomicU64>::default(), Gate::default());
        let backend = large(TOTAL, &sent, &done);
        let spill = directory();
        let lines = format!("response = \"64KiB\", spill_limit = {:?}", "3MiB");
        let server = proxy(engine, &[backend.name()], &buffer(&lines, spill.path()));
        for target in ["/length", "/chunked"] {
            sent.store(0, Ordering::SeqCst);
            let mut client = slow_client(&server, target);
            let (mut last, mut same) = (0, 0);
            let ahead = wait_for("it stands still", PIECE_PATIENCE, || {
                let now = sent.load(Ordering::SeqCst);
                same = if now == last && now > 0 { same + 1 } else { 0 };
                last = now;
                (same >= 40).then_some(now)
            });
            assert!(
                ahead < TOTAL as u64 * 3 / 4,
                "{target}: {ahead} B were taken"
            );
            assert_eq!(files(&server, spill.path()), [LIMIT], "{target}");
            let response = client.response();
            assert_eq!(response.body.len(), TOTAL, "{target}");
            assert!(repeats(&response.body, &noise(PIECE)), "{target}");
            done.wait();
            await_no_files(&server, spill.path());
        }
        assert_eq!(backend.connections(), 1);
    });
}

#[test]
fn all_files_together_stay_within_their_bound_and_those_that_go_make_room() {
    const TOTAL: usize = 32 << 20;
    const LIMIT: u64 = 4 << 20;
    on_both(|engine| {
        let (sent, done) = (Arc::<AtomicU64>::default(), Gate::default());
        let backend = large(TOTAL, &sent, &done);
        let spill = directory();
        let buffered = buffer("response = \"64KiB\"", spill.path());
        let config = site(&format!("proxy = {:?}\n{buffered}", [backend.name()]));
        let config = format!("[server.limits]\nspill = \"4MiB\"\n{config}");
        let server = Setup::run(engine, &config).start();
        let mut clients = ["/length", "/chunked"].map(|target| slow_client(&server, target));
        let all = || files(&server, spill.path()).iter().sum::<u64>();
        // Less than a write of each is missing at most.
        wait_until("it is full", PIECE_PATIENCE, || all() > LIMIT - (256 << 10));
        let (mut last, mut same) = (0, 0);
        wait_until("it stands still", PIECE_PATIENCE, || {
            let now = sent.load(Ordering::SeqCst);
            same = if now == last && now > 0 { same + 1 } else { 0 };
            last = now;
            same >= 40
        });
        let held = all();
        assert!(held <= LIMIT, "{held} B");
        for client in &mut clients {
            let response = client.response();
            assert_eq!(response.body.len(), TOTAL);
            assert!(repeats(&response.body, &noise(PIECE)));
        }
        await_no_files(&server, spill.path());
        let told = server.stderr();
        assert!(told.contains("`server.limits.spill` is reached"), "{told}");
        // There is room again.
        let mut client = slow_client(&server, "/length");
        wait_until("it is held", PIECE_PATIENCE, || all() > LIMIT / 2);
        assert_eq!(client.response().body.len(), TOTAL);
        await_no_files(&server, spill.path());
    });
}

const PIECE_PATIENCE: Duration = Duration::from_secs(20);

/// Sends a body in pieces.
fn upload(client: &Client, piece: &[u8], count: usize, chunked: bool) {
    let mut socket = client.socket().try_clone().expect("a descriptor");
    for _ in 0..count {
        if chunked {
            write!(socket, "{:x}\r\n", piece.len()).expect("it is read");
        }
        socket.write_all(piece).expect("it is read");
        if chunked {
            socket.write_all(b"\r\n").expect("it is read");
        }
    }
    if chunked {
        socket.write_all(b"0\r\n\r\n").expect("it is read");
    }
}

#[test]
fn an_upload_is_held_and_sent_whole_also_to_a_second_backend() {
    const PIECES: usize = 40;
    on_both(|engine| {
        // Takes a part of it, and resets the connection.
        let first = Backend::start(|connection| {
            connection.head().expect("a head");
            connection.exactly(3 << 20);
            connection.reset();
        });
        let second = Backend::start(|connection| {
            while let Some(request) = connection.head() {
                let length: usize = request.must("Content-Length").parse().unwrap();
                let piece = noise(PIECE);
                let mut whole = length == PIECES * PIECE;
                for _ in 0..PIECES {
                    whole &= connection.exactly(PIECE) == piece;
                }
                connection.send(ok(if whole { "whole" } else { "other bytes" }));
            }
        });
        let spill = directory();
        let lines = buffer("request = \"256KiB\"", spill.path());
        let backends = [first.name(), second.name()];
        let server = upstream(engine, &backends, "passive_health = false", &lines);
        let piece = noise(PIECE);
        let before = memory(server.worker());
        for framing in [
            format!("Content-Length: {}", PIECES * PIECE),
            "Transfer-Encoding: chunked".to_owned(),
        ] {
            let chunked = framing.starts_with('T');
            let asked = (first.connections(), second.connections());
            let mut client = server.connect();
            client.send(format!("PUT / HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n"));
            if !chunked {
                upload(&client, &piece, PIECES - 1, chunked);
                wait_until("most of it is in a file", PATIENCE, || {
                    let kept = files(&server, spill.path());
                    kept.iter().sum::<u64>() >= ((PIECES - 2) * PIECE) as u64
                });
                let now = (first.connections(), second.connections());
                assert_eq!(now, asked, "no backend is held by it");
                let grown = memory(server.worker()).saturating_sub(before);
                assert!(grown < GROWTH_MAX, "{grown} B more");
                evict(&server, spill.path());
                client.send(&piece);
            } else {
                upload(&client, &piece, PIECES, chunked);
            }
            assert_eq!(client.response().text(), "whole", "{framing}");
            await_no_files(&server, spill.path());
        }
        assert!(first.connections() > 0, "it was tried twice");
        let grown = memory(server.worker()).saturating_sub(before);
        assert!(grown < GROWTH_MAX, "{grown} B more");
    });
}

#[test]
fn a_response_may_be_held_while_its_request_is_still_on_its_way() {
    const PIECES: usize = 8;
    on_both(|engine| {
        let (answered, go_on) = (Gate::default(), Gate::default());
        let (of_script, of_client) = (answered.clone(), go_on.clone());
        let backend = Backend::start(move |connection| {
            while let Some(request) = connection.head() {
                if request.method == "GET" {
                    connection.send(ok("next"));
                    continue;
                }
                let piece = noise(PIECE);
                let length = PIECES * PIECE;
                connection.send(format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n"
                ));
                for _ in 0..PIECES {
                    connection.send(&piece);
                }
                of_script.open();
                of_client.wait();
                for _ in 0..PIECES {
                    assert!(connection.exactly(PIECE) == piece);
                }
            }
        });
        let spill = directory();
        let lines = buffer("response = \"64KiB\"", spill.path());
        let server = upstream(engine, &[backend.name()], "max_conns = 1", &lines);
        let piece = noise(PIECE);
        let mut client = server.connect();
        let length = PIECES * PIECE;
        client.send(format!(
            "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n"
        ));
        answered.wait();
        go_on.open();
        upload(&client, &piece, PIECES, false);
        // The backend is free when it has all of the request, whatever the client has of the response.
        assert_eq!(server.connect().get("/").text(), "next");
        let response = client.response();
        assert!(response.body.len() == length && repeats(&response.body, &piece));
        assert_eq!(backend.connections(), 1, "it was used again");
        await_no_files(&server, spill.path());
    });
}

#[test]
fn an_upload_beyond_its_bound_goes_on_as_it_comes() {
    on_both(|engine| {
        let spill = directory();
        let lines = "request = \"64KiB\", spill_limit = \"1MiB\"";
        let gate = Gate::default();
        let of_script = gate.clone();
        let backend = Backend::start(move |connection| {
            while let Some(mut request) = connection.head() {
                of_script.open();
                connection.body(&mut request).expect("a body");
                let whole = repeats(&request.body, &noise(PIECE));
                let length = request.body.len();
                connection.send(ok(&format!("{length} {whole}")));
            }
        });
        let server = proxy(engine, &[backend.name()], &buffer(lines, spill.path()));
        let piece = noise(PIECE);
        // Known not to fit: nothing is written.
        let mut client = server.connect();
        let length = 3 * PIECE;
        client.send(format!(
            "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n"
        ));
        upload(&client, &piece, 1, false);
        gate.wait();
        assert!(files(&server, spill.path()).is_empty());
        upload(&client, &piece, 2, false);
        assert_eq!(client.response().text(), format!("{length} true"));
        // Found out on the way: what was written goes first.
        client.send("PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
        upload(&client, &piece, 3, true);
        assert_eq!(client.response().text(), format!("{length} true"));
        assert!(backend.last().is_chunked());
        gate.wait();
        await_no_files(&server, spill.path());
    });
}

#[test]
fn a_directory_that_can_not_be_written_to_is_named_at_the_start() {
    on_both(|engine| {
        let spill = directory();
        allow(spill.path(), 0o500);
        let backend = Backend::echo();
        let lines = buffer("request = \"64KiB\"", spill.path());
        let text = site(&format!("proxy = {:?}\n{lines}", [backend.name()]));
        let output = Setup::run(engine, &text).fail();
        assert_eq!(output.code, Some(1), "{output:?}");
        let path = spill.path().display().to_string();
        for part in ["buffer.spill", &path, "user", "Permission denied", "help:"] {
            assert!(output.stderr.contains(part), "{part}: {output:?}");
        }
        // A reload with it is refused, and the old configuration goes on.
        let good = site(&format!("proxy = {:?}", [backend.name()]));
        let server = Setup::run(engine, &good).start();
        server.write_config(&text);
        let output = server.control(&["reload"]);
        assert_ne!(output.code, Some(0), "{output:?}");
        assert!(output.stderr.contains("buffer.spill"), "{output:?}");
        assert_eq!(server.connect().get("/still").text(), "/still");
        allow(spill.path(), 0o777);
        server.must(&["reload"]);
        assert_eq!(server.connect().get("/now").text(), "/now");
    });
}

#[test]
fn nothing_is_left_of_what_was_broken_off() {
    on_both(|engine| {
        let (sent, done) = (Arc::default(), Gate::default());
        let backend = large(16 << 20, &sent, &done);
        let spill = directory();
        let lines = buffer("response = \"64KiB\", request = \"64KiB\"", spill.path());
        let server = proxy(engine, &[backend.name()], &lines);
        assert_eq!(server.connect().get("/warm").text(), "warm");
        let worker = server.worker();
        let idle = descriptors(worker);
        let piece = noise(PIECE);
        for _ in 0..3 {
            let client = slow_client(&server, "/length");
            done.wait();
            assert_eq!(files(&server, spill.path()).len(), 1);
            client.abort();
            let mut client = server.connect();
            client.send("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 9000000\r\n\r\n");
            upload(&client, &piece, 4, false);
            wait_until("a part is in a file", PATIENCE, || {
                files(&server, spill.path()).iter().any(|size| *size > 0)
            });
            client.abort();
            await_no_files(&server, spill.path());
        }
        wait_until("the descriptors are closed", PATIENCE, || {
            descriptors(worker) <= idle
        });
        assert_eq!(server.connect().get("/warm").text(), "warm");
    });
}

#[test]
fn the_access_log_tells_what_was_written() {
    on_both(|engine| {
        let spill = directory();
        let backend = Backend::start(|connection| {
            while let Some(request) = connection.request() {
                connection.send(ok(&request.body.len().to_string()));
            }
        });
        let logs = tempfile::tempdir().unwrap();
        let log = logs.path().join("access.log");
        let lines = buffer("request = \"64KiB\"", spill.path());
        let text = format!(
            "[server]\naccess_log = {log:?}\nlog_format = \"json\"\n{}",
            site(&format!("proxy = {:?}\n{lines}", [backend.name()]))
        );
        let server = Setup::run(engine, &text).start();
        let mut client = server.connect();
        for (size, spilled) in [(1000, 0), (300_000, 300_000 - (64 << 10))] {
            client.send(format!(
                "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n"
            ));
            client.send(noise(size));
            assert_eq!(client.response().text(), size.to_string());
            wait_for("the line", PATIENCE, || {
                let text = fs::read_to_string(&log).unwrap_or_default();
                let lines = text.lines();
                let mut lines = lines.map(|line| serde_json::from_str(line).expect("JSON"));
                lines.find(|line: &serde_json::Value| {
                    line["received"] == size && line["upstream"]["spilled"] == spilled
                })
            });
        }
    });
}

/// A server whose directory for bodies is a file system of 4 MiB; `None` where that can't be made.
fn with_small_disk(engine: Engine, text: &str, spill: &Path) -> Option<Server> {
    let tools = tempfile::tempdir().expect("a temporary directory");
    allow(tools.path(), 0o755);
    let script = tools.path().join("beltway");
    let mount = format!(
        "mount -t tmpfs -o size=4m,mode=777 tmpfs '{}'",
        spill.display()
    );
    let program = crate::support::server::PROGRAM;
    let content = format!(
        "#!/bin/sh\nexec unshare -m sh -c \"{mount} && exec '{program}' \\\"\\$@\\\"\" beltway \"$@\"\n"
    );
    fs::write(&script, content).expect("a script");
    allow(&script, 0o755);
    let try_it = std::process::Command::new("unshare")
        .args(["-m", "sh", "-c", &mount])
        .output();
    if !try_it.is_ok_and(|output| output.status.success()) {
        crate::support::skipped("this user can't mount a small file system");
        return None;
    }
    Some(Setup::run(engine, text).program(&script).start())
}

#[test]
fn a_full_disk_refuses_requests_and_slows_responses_down() {
    const TOTAL: usize = 24 << 20;
    on_both(|engine| {
        let (sent, done) = (Arc::<AtomicU64>::default(), Gate::default());
        let backend = large(TOTAL, &sent, &done);
        let spill = directory();
        let lines = buffer("request = \"64KiB\", response = \"64KiB\"", spill.path());
        let text = site(&format!("proxy = {:?}\n{lines}", [backend.name()]));
        let Some(server) = with_small_disk(engine, &text, spill.path()) else {
            return;
        };
        // A request that there is no place for, before a backend has heard of it.
        let mut client = server.connect();
        client.send(format!(
            "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n",
            6 * PIECE
        ));
        let piece = noise(PIECE);
        for _ in 0..6 {
            // It may be refused before all of it is sent.
            let _ = client.try_send(&piece);
        }
        assert_eq!(client.response().status, 507);
        assert_eq!(backend.requests().len(), 0);
        wait_until("the log says why", PATIENCE, || {
            server.stderr().contains("No space left")
        });
        // One that there is place for goes through: what the other had is free.
        await_no_files_of(&server);
        let mut client = server.connect();
        let length = 2 * PIECE;
        client.send(format!(
            "PUT /warm HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n"
        ));
        upload(&client, &piece, 2, false);
        assert_eq!(client.response().text(), "warm");
        let body = backend.last().body;
        assert!(body.len() == length && repeats(&body, &piece));
        // A response waits for its client instead, and is whole.
        let before = memory(server.worker());
        let mut client = slow_client(&server, "/length");
        wait_until("the disk is full", PATIENCE, || {
            server.stderr().contains("a response can't be written")
        });
        let grown = memory(server.worker()).saturating_sub(before);
        assert!(grown < 8 << 20, "{grown} B more");
        let response = client.response();
        assert_eq!(response.body.len(), TOTAL);
        assert!(repeats(&response.body, &piece), "other bytes");
        done.wait();
        let said = server.stderr();
        assert_eq!(said.matches("a response can't be written").count(), 1);
        await_no_files_of(&server);
        assert_eq!(client.get("/warm").text(), "warm");
    });
}

/// Waits until the worker has no file without a name. Where it has a file system of its own, its paths
/// aren't ours.
fn await_no_files_of(server: &Server) {
    let of_process = PathBuf::from(format!("/proc/{}/fd", server.worker()));
    wait_until("the files are gone", PATIENCE, || {
        let numbers = fs::read_dir(&of_process).expect("it runs").flatten();
        let mut links = numbers.filter_map(|number| fs::read_link(number.path()).ok());
        !links.any(|path| path.to_string_lossy().contains("/#"))
    });
}

#[test]
fn a_confined_worker_may_write_where_it_is_told_and_nowhere_else() {
    on_both(|engine| {
        let backend = Backend::start(|connection| {
            while let Some(request) = connection.request() {
                connection.send(ok(&request.body.len().to_string()));
            }
        });
        let spill = [directory(), directory()];
        let text = |at: usize| {
            let lines = buffer("request = \"1KiB\"", spill[at].path());
            site(&format!("proxy = {:?}\n{lines}", [backend.name()]))
        };
        let server = Setup::run(engine, &text(0)).start();
        let Some(sandbox) = server.whole_sandbox() else {
            return;
        };
        assert!(sandbox["files"].to_string().contains("writes beneath 1"));
        let put = || {
            let mut client = server.connect();
            client.send("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 500000\r\n\r\n");
            client.send(noise(500_000));
            assert_eq!(client.response().text(), "500000");
        };
        put();
        let reply = server.ask_must("probe");
        let mut attempts = reply["data"].as_array().expect("attempts").iter();
        let elsewhere = attempts.find(|attempt| attempt["what"] == "write beneath /tmp");
        assert_eq!(elsewhere.expect("tried")["refused"], true, "{reply}");
        // Another directory takes another worker, which may write there.
        let first = server.worker();
        server.write_config(&text(1));
        server.must(&["reload"]);
        assert_ne!(server.worker(), first);
        put();
    });
}
