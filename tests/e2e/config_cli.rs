//! The command line and the configuration as a user meets them.

use std::fs;
use std::net::TcpListener;
use std::path::Path;

use crate::support::server::{Address, Output, output, program};
use crate::support::{Engine, PATIENCE, Setup, Tree, on_both, wait_until};

/// Runs the program in a directory.
fn run_in(directory: &Path, arguments: &[&str]) -> Output {
    output(program().args(arguments).current_dir(directory))
}

/// A directory with `beltway.toml` and something to serve.
fn with_config(text: &str) -> Tree {
    let tree = Tree::with(&[("index.html", "top")]);
    fs::write(tree.outside().join("beltway.toml"), text).expect("the configuration");
    tree
}

const GOOD: &str = "[server]\nworkers = 2\n\n[site.\":8080\"]\nroot = \"www\"\n";

#[test]
fn a_good_configuration_passes_and_is_shown() {
    let tree = with_config(GOOD);
    for arguments in [
        &["check"][..],
        &["-t"],
        &["check", "-c", "beltway.toml"],
        &["-t", "-c", "beltway.toml"],
    ] {
        let output = run_in(tree.outside(), arguments);
        assert_eq!(output.code, Some(0), "{arguments:?}: {output:?}");
    }
    for arguments in [&["show"][..], &["-T"]] {
        let output = run_in(tree.outside(), arguments);
        assert_eq!(output.code, Some(0), "{output:?}");
        assert!(output.stdout.contains("workers = 2"), "{}", output.stdout);
        assert!(
            !output.stdout.contains("75s"),
            "a default: {}",
            output.stdout
        );
    }
    let output = run_in(tree.outside(), &["show", "--defaults"]);
    assert!(output.stdout.contains("75s"), "{}", output.stdout);
}

#[test]
fn what_is_wrong_is_shown_at_its_place_all_in_one_run() {
    let tree = with_config(
        "[server]\nworkrs = 2\n\n[site.\":8080\"]\nroot = \"missing\"\nlist = \"yes\"\n",
    );
    for arguments in [&["check"][..], &["run"], &["show"]] {
        let output = run_in(tree.outside(), arguments);
        assert_eq!(output.code, Some(78), "{arguments:?}: {output:?}");
        let text = &output.stderr;
        for part in [
            "beltway.toml:2",
            "workrs",
            "workers",
            "^",
            "beltway.toml:6",
            "list",
        ] {
            assert!(text.contains(part), "{part:?} is missing:\n{text}");
        }
        if arguments[0] != "show" {
            assert!(text.contains("missing"), "the directory:\n{text}");
        }
        assert!(!text.contains("\u{1b}["), "colours without a terminal");
        assert!(!text.contains("panicked"));
    }
    let output = run_in(tree.outside(), &["check", "--json"]);
    assert_eq!(output.code, Some(78));
    serde_json::from_str::<serde_json::Value>(&output.stdout).expect("JSON");
}

#[test]
fn broken_toml_is_an_error_with_a_place() {
    for (text, line) in [
        ("[server\n", 1),
        ("[server]\nworkers = \n", 2),
        ("[server]\nworkers = 2\nworkers = 3\n", 3),
        ("\n\n= 1\n", 3),
        ("[site.\":80\"]\nroot = \"www\n", 2),
    ] {
        let tree = with_config(text);
        let output = run_in(tree.outside(), &["check"]);
        assert_eq!(output.code, Some(78), "{text:?}: {output:?}");
        let place = format!("beltway.toml:{line}");
        assert!(
            output.stderr.contains(&place),
            "{text:?}: {}",
            output.stderr
        );
    }
    let tree = Tree::new();
    let output = run_in(tree.outside(), &["check"]);
    assert_eq!(output.code, Some(78), "{output:?}");
    assert!(output.stderr.contains("beltway.toml"), "{}", output.stderr);
}

#[test]
fn wrong_usage_has_its_own_exit_code() {
    let tree = with_config(GOOD);
    for arguments in [
        &["--nonsense"][..],
        &["serve", "--engine=kqueue"],
        &["nonsense"],
        &["check", "extra"],
        &["run", "-c"],
    ] {
        let output = run_in(tree.outside(), arguments);
        assert_eq!(output.code, Some(2), "{arguments:?}: {output:?}");
        assert!(!output.stderr.is_empty());
    }
    for arguments in [&["-V"][..], &["--version"]] {
        let output = run_in(tree.outside(), arguments);
        assert_eq!(output.code, Some(0));
        assert_eq!(
            output.stdout.trim(),
            format!("beltway {}", env!("CARGO_PKG_VERSION"))
        );
    }
    let output = run_in(tree.outside(), &["--help"]);
    assert_eq!(output.code, Some(0));
    assert!(output.stdout.contains("serve"));
}

#[test]
fn a_one_liner_prints_the_file_that_equals_it() {
    on_both(|engine| {
        let tree = Tree::with(&[("index.html", "top"), ("x/y", "y")]);
        let output = output(
            program()
                .args(["serve", "www", "--spa", "-l", "127.0.0.1:0", "--workers=1"])
                .args(["--no-etag", "--print-config"])
                .current_dir(tree.outside()),
        );
        assert_eq!(output.code, Some(0), "{output:?}");
        // A file elsewhere means the same: paths in it don't depend on where it lies.
        let server = Setup::run(engine, &output.stdout).start();
        let mut client = server.connect();
        let response = client.get("/some/where");
        assert_eq!((response.text(), response.field("ETag")), ("top", None));
    });
}

#[test]
fn flags_win_over_the_environment_and_that_over_the_file() {
    let tree = with_config("[server]\nworkers = 2\n[site.\":8080\"]\nroot = \"www\"\n");
    let shown = |environment: Option<&str>, arguments: &[&str]| {
        let mut command = program();
        command
            .arg("show")
            .args(arguments)
            .current_dir(tree.outside());
        if let Some(value) = environment {
            command.env("BELTWAY_SERVER_WORKERS", value);
        }
        let output = output(&mut command);
        assert_eq!(output.code, Some(0), "{output:?}");
        let line = output
            .stdout
            .lines()
            .find_map(|line| line.strip_prefix("workers = "));
        line.expect("it is shown").trim().to_owned()
    };
    assert_eq!(shown(None, &[]), "2");
    assert_eq!(shown(Some("3"), &[]), "3");
    assert_eq!(shown(Some("3"), &["--workers=4"]), "4");
    assert_eq!(shown(Some("3"), &["--set", "server.workers=5"]), "5");
    let output = output(
        program()
            .args(["check"])
            .env("BELTWAY_SERVER_WORKRS", "3")
            .current_dir(tree.outside()),
    );
    assert_eq!(
        output.code,
        Some(78),
        "a variable that means nothing: {output:?}"
    );
    assert!(
        output.stderr.contains("BELTWAY_SERVER_WORKRS"),
        "{}",
        output.stderr
    );
}

#[test]
fn settings_on_the_command_line_take_effect() {
    on_both(|engine| {
        let config = "[site.\"*\"]\nlisten = [\"127.0.0.1:0\"]\nrespond = 200\nbody = \"ok\"\n";
        let server = Setup::run(engine, config)
            .arguments(&["--set", "server.limits.header_fields=2"])
            .environment("BELTWAY_SERVER_LIMITS_REQUEST_LINE", "256B")
            .start();
        let status = |request: String| {
            let mut client = server.connect();
            client.send(request);
            client.response().status
        };
        assert_eq!(
            status("GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n\r\n".into()),
            200
        );
        let three = "GET / HTTP/1.1\r\nHost: a\r\nX: y\r\nX: y\r\n\r\n";
        assert_eq!(status(three.into()), 431);
        let long = "x".repeat(300);
        assert_eq!(
            status(format!("GET /{long} HTTP/1.1\r\nHost: a\r\n\r\n")),
            414
        );
    });
}

#[test]
fn an_address_in_use_names_the_process() {
    on_both(|engine| {
        let tree = Tree::new();
        let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = taken.local_addr().expect("it has one").to_string();
        let output = Setup::serve(engine, tree.root())
            .arguments(&["-l", &address])
            .fail();
        assert_eq!(output.code, Some(1), "{output:?}");
        let text = &output.stderr;
        for part in ["in use", &address, &std::process::id().to_string()] {
            assert!(text.contains(part), "{part:?} is missing:\n{text}");
        }
    });
}

#[test]
fn a_start_that_fails_says_why() {
    let tree = Tree::new();
    let missing = tree.outside().join("missing");
    let output = Setup::serve(Engine::Epoll, &missing).fail();
    assert_eq!(output.code, Some(78), "{output:?}");
    assert!(output.stderr.contains("missing"), "{}", output.stderr);

    let output = Setup::serve(Engine::Epoll, tree.root())
        .arguments(&["-l", "unix:/nonexistent/directory/web.sock"])
        .fail();
    assert_ne!(output.code, Some(0));
    assert!(
        output.stderr.contains("/nonexistent/directory"),
        "{}",
        output.stderr
    );

    let log = "--access-log=/nonexistent/directory/access.log";
    let output = Setup::serve(Engine::Epoll, tree.root())
        .arguments(&[log])
        .fail();
    assert_ne!(output.code, Some(0));
    assert!(output.stderr.contains("access.log"), "{}", output.stderr);
}

#[test]
fn every_example_passes() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("conf");
    let mut count = 0;
    for entry in fs::read_dir(&directory).expect("conf") {
        let path = entry.expect("an entry").path();
        if path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        count += 1;
        let name = path.to_str().expect("UTF-8");
        // The directories of an example are on no machine but its reader's.
        let output = output(program().args(["check", "--no-files", "-c", name]));
        assert_eq!(output.code, Some(0), "{name}: {}", output.stderr);
    }
    assert!(count >= 5, "only {count} examples");
}

#[test]
fn without_arguments_it_serves_the_current_directory() {
    // The one test whose port isn't free to choose: where it is taken, that must be said.
    let tree = Tree::with(&[("a.txt", "hello")]);
    let setup = Setup::bare().directory(tree.root());
    if TcpListener::bind("127.0.0.1:8080").is_err() {
        let output = setup.fail();
        assert_eq!(output.code, Some(1));
        assert!(
            output.stderr.contains("127.0.0.1:8080"),
            "{}",
            output.stderr
        );
        return;
    }
    let server = setup.start();
    assert!(
        server
            .stderr()
            .contains("listening on http://127.0.0.1:8080")
    );
    let mut client = server.connect();
    assert_eq!(client.get("/a.txt").text(), "hello");
    assert!(client.get("/").text().contains("a.txt"), "it lists");
}

#[test]
fn serve_says_what_it_serves_and_where() {
    on_both(|engine| {
        let tree = Tree::new();
        let server = Setup::serve(engine, ".").directory(tree.root()).start();
        let root = tree.root();
        wait_until("the last line has come", PATIENCE, || {
            server.stdout().contains("engine: ")
        });
        let root = root.to_str().expect("UTF-8");
        assert!(server.stdout().contains(root), "the directory is named");
        let text = server.stdout() + &server.stderr();
        assert!(!text.contains("\u{1b}["), "colours without a terminal");
        let Address::Tcp(address) = server.address() else {
            panic!("not TCP");
        };
        assert!(server.stdout().contains(&format!("http://{address}")));
    });
}

#[test]
fn certificates_are_listed_and_one_that_has_ended_fails() {
    let tree = Tree::with(&[]);
    let key = rcgen::KeyPair::generate().expect("a key");
    let certificate = |end: i32| {
        let mut params = rcgen::CertificateParams::new(["a.example".to_owned()]).expect("a name");
        params.not_before = rcgen::date_time_ymd(2000, 1, 1);
        params.not_after = rcgen::date_time_ymd(end, 1, 1);
        params.self_signed(&key).expect("it signs").pem()
    };
    fs::write(tree.outside().join("good.pem"), certificate(2999)).expect("a certificate");
    fs::write(tree.outside().join("ended.pem"), certificate(2001)).expect("a certificate");
    let list = |files: &[&str]| run_in(tree.outside(), &[&["cert", "list"], files].concat());
    let output = list(&["good.pem"]);
    assert_eq!(output.code, Some(0), "{output:?}");
    for part in [
        "good.pem\n",
        "a.example",
        "2999-01-01T00:00:00Z",
        "days left",
        "ECDSA P-256",
    ] {
        assert!(output.stdout.contains(part), "{part}: {}", output.stdout);
    }
    let output = list(&["good.pem", "ended.pem", "--json"]);
    assert_eq!(output.code, Some(1), "{output:?}");
    let json: serde_json::Value = serde_json::from_str(&output.stdout).expect("JSON");
    let valid: Vec<_> = (0..2)
        .map(|n| json["certificates"][n]["valid"].clone())
        .collect();
    assert_eq!(valid, [true, false]);
    let output = list(&["missing.pem"]);
    assert_eq!(output.code, Some(1), "{output:?}");
    assert!(
        output
            .stdout
            .contains("missing.pem\n  wrong    can't be read: No such file")
    );
}
