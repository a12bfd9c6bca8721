//! What a worker may not do, tried by the worker itself, and who it is.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use super::{config, config_with};
use crate::support::{Engine, PATIENCE, Setup, Tree, on_both, wait_until};

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A line of `/proc/PID/status`.
fn fact(pid: u32, name: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.expect("the kernel tells it")
        .trim_start_matches(':')
        .trim()
        .to_owned()
}

#[test]
fn the_worker_is_refused_what_it_tries_and_that_is_counted() {
    on_both(|engine| {
        let tree = Tree::with(&[("a.txt", "hello")]);
        let server = Setup::run(engine, &config(&tree, "ok")).start();
        let Some(sandbox) = server.whole_sandbox() else {
            return;
        };
        let before = sandbox["refused"].as_u64().expect("a number");
        let reply = server.ask_must("probe");
        let attempts = reply["data"].as_array().expect("attempts");
        let tried = |what: &str| {
            let find = |attempt: &&serde_json::Value| {
                attempt["what"]
                    .as_str()
                    .is_some_and(|text| text.contains(what))
            };
            let found = attempts.iter().find(find);
            let attempt = found.unwrap_or_else(|| panic!("{what} was not tried: {reply}"));
            assert_eq!(attempt["refused"], true, "{attempt}");
        };
        for what in [
            "/etc/shadow",
            "packet",
            "netlink",
            "bind",
            "exec",
            "set up a ring",
        ] {
            tried(what);
        }
        if engine == Engine::Uring {
            tried("by a ring: make a packet socket");
        }
        let status = server.status();
        let sandbox = &status["generations"][0]["workers"][0]["sandbox"];
        let refused = sandbox["refused"].as_u64().expect("a number") - before;
        assert!(refused >= 5, "{refused} were counted: {reply}");
        // It serves as before.
        assert_eq!(server.connect().get("/a.txt").text(), "hello");
        let doctor = server.must(&["doctor", "--worker"]);
        assert!(doctor.stdout.contains("refused"), "{doctor:?}");
    });
}

#[test]
fn a_worker_of_root_is_somebody_without_rights() {
    if !is_root() {
        crate::support::skipped("only root can become another user");
        return;
    }
    on_both(|engine| {
        let tree = Tree::with(&[("a.txt", "hello")]);
        let text = config_with(&tree, "ok", "user = \"nobody\"");
        let server = Setup::run(engine, &text).start();
        let worker = server.worker();
        let uid = fact(worker, "Uid");
        assert!(!uid.split_whitespace().any(|id| id == "0"), "{uid}");
        let gid = fact(worker, "Gid");
        assert!(!gid.split_whitespace().any(|id| id == "0"), "{gid}");
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(fact(worker, set).trim_start_matches('0'), "", "{set}");
        }
        assert_eq!(fact(worker, "NoNewPrivs"), "1");
        assert_eq!(fact(worker, "Seccomp"), "2");
        assert_eq!(server.connect().get("/a.txt").text(), "hello");
        let status = server.must(&["status"]);
        assert!(status.stdout.contains("nobody"), "{}", status.stdout);
    });
}

#[test]
fn a_root_that_the_user_can_not_read_is_named_with_the_user() {
    if !is_root() {
        crate::support::skipped("only root can become another user");
        return;
    }
    on_both(|engine| {
        let tree = Tree::with(&[("a.txt", "hello")]);
        let text = config_with(&tree, "ok", "user = \"nobody\"");
        let closed = fs::Permissions::from_mode(0o700);
        fs::set_permissions(tree.root(), closed).unwrap();
        let output = Setup::run(engine, &text).fail();
        assert_eq!(output.code, Some(1), "{output:?}");
        for part in ["nobody", "/www", "Permission denied", "help:"] {
            assert!(output.stderr.contains(part), "{part}: {output:?}");
        }
        // A reload with such a directory is refused, and the old one goes on.
        let other = Tree::with(&[("a.txt", "other")]);
        let server = Setup::run(engine, &config_with(&other, "ok", "user = \"nobody\"")).start();
        server.write_config(&text);
        let output = server.control(&["reload"]);
        assert_eq!(output.code, Some(78), "{output:?}");
        assert!(output.stderr.contains("/www"), "{output:?}");
        assert_eq!(server.connect().get("/a.txt").text(), "other");
    });
}

#[test]
fn access_logs_of_root_are_written_and_reopened_by_a_worker_that_may_not_open_them() {
    on_both(|engine| {
        let tree = Tree::new();
        let logs = tempfile::tempdir().unwrap();
        let log = logs.path().join("access.log");
        let text = config_with(&tree, "ok", &format!("access_log = {log:?}"));
        let server = Setup::run(engine, &text).start();
        let mut asked = 0;
        let mut files = vec![log.clone()];
        for turn in 0..3 {
            for _ in 0..20 {
                assert_eq!(server.connect().get("/ok").text(), "ok");
                asked += 1;
            }
            let rotated = logs.path().join(format!("access.log.{turn}"));
            fs::rename(&log, &rotated).unwrap();
            files.push(rotated);
            server.must(&["reopen"]);
            assert!(log.exists());
        }
        server.signal(rustix::process::Signal::USR1);
        assert_eq!(server.connect().get("/ok").text(), "ok");
        asked += 1;
        wait_until("every line is in one of the files", PATIENCE, || {
            let lines = |path| fs::read_to_string(path).unwrap_or_default().lines().count();
            files.iter().map(lines).sum::<usize>() == asked
        });
    });
}

#[test]
fn without_a_sandbox_it_serves_and_says_so() {
    on_both(|engine| {
        let tree = Tree::with(&[("a.txt", "hello")]);
        let server = Setup::run(engine, &config(&tree, "ok"))
            .arguments(&["--no-sandbox"])
            .start();
        assert_eq!(server.connect().get("/a.txt").text(), "hello");
        let status = server.status();
        let sandbox = &status["generations"][0]["workers"][0]["sandbox"];
        for part in ["files", "rings", "calls"] {
            assert_eq!(sandbox[part], "off", "{sandbox}");
        }
    });
}

#[test]
fn one_liners_run_under_a_master_when_asked() {
    on_both(|engine| {
        let tree = Tree::with(&[("a.txt", "hello")]);
        let mut server = Setup::serve(engine, tree.root())
            .arguments(&["--supervise"])
            .start();
        assert_eq!(server.connect().get("/a.txt").text(), "hello");
        wait_until("the address is printed", PATIENCE, || {
            server.stdout().contains("http://127.0.0.1:")
        });
        server.signal(rustix::process::Signal::INT);
        assert_eq!(server.exit_code(), Some(0));
    });
}

#[test]
fn a_one_liner_refuses_what_only_a_master_can_do() {
    let tree = Tree::new();
    for flag in [
        "--user=nobody",
        "--sandbox=strict",
        "--set=server.processes=2",
    ] {
        let output = Setup::serve(Engine::Epoll, tree.root())
            .arguments(&[flag])
            .fail();
        assert_eq!(output.code, Some(2), "{flag}: {output:?}");
        assert!(output.stderr.contains("--supervise"), "{flag}: {output:?}");
    }
}
