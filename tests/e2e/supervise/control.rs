//! The control socket and the commands that use it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use super::{ANY, config};
use crate::support::server::{Address, output, program};
use crate::support::{Client, PATIENCE, Setup, Tree, wait_until};

#[test]
fn status_tells_what_runs_as_text_and_as_json() {
    let tree = Tree::new();
    let server = Setup::run(ANY, &config(&tree, "ok")).workers(2).start();
    let mut client = server.connect();
    for _ in 0..5 {
        assert_eq!(client.get("/ok").text(), "ok");
    }
    let status = server.status();
    assert_eq!(status["pid"], server.pid());
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(status["epoch"], 1);
    let worker = &status["generations"][0]["workers"][0];
    let cores = worker["cores"].as_array().expect("cores");
    assert_eq!(cores.len(), 2);
    let sum = |key: &str| {
        cores
            .iter()
            .map(|core| core[key].as_u64().unwrap())
            .sum::<u64>()
    };
    assert_eq!((sum("connections"), sum("requests")), (1, 5), "{status}");
    assert!(sum("memory_bytes") > 1 << 20, "{status}");
    assert_eq!(worker["engine"], "epoll");
    assert_eq!(worker["listeners"][0]["connections"], 1);
    let text = server.must(&["status"]).stdout;
    for part in [
        "epoll",
        "127.0.0.1:",
        "generation 1: serving",
        "1 connection",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn the_socket_is_the_owners_alone_and_goes_with_the_server() {
    let tree = Tree::new();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("another.sock");
    let mut server = Setup::run(ANY, &config(&tree, "ok"))
        .arguments(&["--control", path.to_str().unwrap()])
        .start();
    // The last of the two wins.
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let mut command = program();
    command.args(["stop", "--control"]).arg(&path);
    assert_eq!(output(&mut command).code, Some(0));
    assert_eq!(server.exit_code(), Some(0));
    assert!(!path.exists());
}

#[test]
fn a_second_master_of_the_same_file_is_refused_and_the_first_goes_on() {
    let tree = Tree::new();
    let server = Setup::run(ANY, &config(&tree, "ok")).start();
    let second = server.control(&["run"]);
    assert_eq!(second.code, Some(1), "{second:?}");
    assert!(
        second.stderr.contains(&server.pid().to_string()),
        "{second:?}"
    );
    assert_eq!(server.connect().get("/ok").text(), "ok");
    server.must(&["status"]);
}

#[test]
fn commands_say_when_nothing_runs() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("beltway.toml");
    for name in ["reload", "stop", "upgrade", "status", "plan", "reopen"] {
        let mut command = program();
        command.arg(name).arg("-c").arg(&file);
        let output = output(&mut command);
        assert_eq!(output.code, Some(1), "{output:?}");
        assert!(output.stderr.contains("nothing runs"), "{output:?}");
    }
}

#[test]
fn commands_work_beside_a_broken_file_and_by_the_letters_of_nginx() {
    let tree = Tree::new();
    let mut server = Setup::run(ANY, &config(&tree, "ok")).start();
    server.write_config("[server\n");
    server.must(&["status"]);
    assert_eq!(server.control(&["-s", "reload"]).code, Some(78));
    server.must(&["-s", "reopen"]);
    server.must(&["-s", "quit"]);
    assert_eq!(server.exit_code(), Some(0));
}

#[test]
fn a_worker_is_not_started_by_hand() {
    let mut command = program();
    command.arg("worker");
    let output = output(&mut command);
    assert_eq!(output.code, Some(2), "{output:?}");
    assert!(output.stderr.contains("beltway run"), "{output:?}");
}

#[test]
fn the_service_manager_hears_of_start_reload_and_end() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notify.sock");
    let socket = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let hear = |word: &str| {
        let mut seen = String::new();
        wait_until(word, PATIENCE, || {
            let mut room = [0; 4096];
            let length = socket.recv(&mut room).expect("a message");
            seen.push_str(std::str::from_utf8(&room[..length]).unwrap());
            seen.contains(word)
        });
    };
    let tree = Tree::new();
    let mut server = Setup::run(ANY, &config(&tree, "ok"))
        .environment("NOTIFY_SOCKET", path.to_str().unwrap())
        .start();
    hear("READY=1");
    server.must(&["reload"]);
    hear("RELOADING=1");
    hear("READY=1");
    server.must(&["stop"]);
    hear("STOPPING=1");
    assert_eq!(server.exit_code(), Some(0));
}

#[test]
fn hundreds_of_listeners_and_sites_come_up_reload_and_upgrade() {
    const LISTENERS: usize = 300;
    let tree = Tree::new();
    let text = |answer: &str| {
        let sites = (0..LISTENERS).map(|number| {
            let (high, low) = (number / 200, number % 200 + 1);
            format!(
                "[site.\"a{number}.example\"]\nlisten = [\"127.0.{high}.{low}:0\"]\nroot = {:?}\n\
                 routes = {{ \"=/ok\" = {{ respond = 200, body = \"{answer} {number}\" }} }}\n",
                tree.root()
            )
        });
        sites.collect::<String>()
    };
    let server = Setup::run(ANY, &text("old")).listeners(LISTENERS).start();
    let check = |answer: &str| {
        for number in [0, 1, 199, 200, LISTENERS - 1] {
            let mut client = Client::connect(&server.addresses()[number]);
            client.send(format!(
                "GET /ok HTTP/1.1\r\nHost: a{number}.example\r\n\r\n"
            ));
            assert_eq!(client.response().text(), format!("{answer} {number}"));
        }
    };
    check("old");
    server.write_config(&text("new"));
    server.must(&["reload"]);
    check("new");
    server.must(&["upgrade"]);
    check("new");
    let status = server.status();
    let listeners = status["generations"][0]["workers"][0]["listeners"].clone();
    assert_eq!(listeners.as_array().map(Vec::len), Some(LISTENERS));
}

#[test]
fn sockets_of_the_service_manager_are_served_by_name_and_by_address() {
    let tree = Tree::new();
    let named = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = named.local_addr().unwrap();
    let text = config(&tree, "ok");
    for listen in ["fd:web".to_owned(), address.to_string()] {
        let text = text.replace("127.0.0.1:0", &listen);
        let socket = named.try_clone().unwrap();
        let mut server = Setup::run(ANY, &text)
            .activated(socket.into(), "web")
            .start();
        assert_eq!(server.address(), &Address::Tcp(address), "{listen}");
        assert_eq!(server.connect().get("/ok").text(), "ok");
        server.must(&["reload"]);
        assert_eq!(server.connect().get("/ok").text(), "ok");
        server.must(&["upgrade"]);
        assert_eq!(server.connect().get("/ok").text(), "ok");
        server.must(&["stop"]);
        assert_eq!(server.exit_code(), Some(0));
        // It is the service manager's: it stays when the server ends.
        drop(Client::connect(&Address::Tcp(address)));
    }
    let output = Setup::run(ANY, &text.replace("127.0.0.1:0", "fd:other"))
        .activated(named.into(), "web")
        .fail();
    assert_eq!(output.code, Some(1), "{output:?}");
    assert!(
        output.stderr.contains("FileDescriptorName=other"),
        "{output:?}"
    );
}
