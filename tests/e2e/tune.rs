//! `beltway tune`: what it measures is written where a start reads it, and what is stale is refused.

use std::fs;
use std::io::{self, Read as _};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::thread;

use crate::support::elsewhere::Elsewhere;
use crate::support::server::{output, output_within, program};
use crate::support::{Engine, PATIENCE, Setup, Tree, noise, on_both, uring_missing};

/// Measures, and gives the directory that a start is told to look in.
fn tuned() -> (tempfile::TempDir, serde_json::Value) {
    let state = tempfile::tempdir().unwrap();
    let mut command = program();
    command
        .args(["tune", "--quick", "--json"])
        .arg(state.path())
        .env("XDG_STATE_HOME", state.path());
    let output = output(&mut command);
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    let report = serde_json::from_str(&output.stdout).expect("it is JSON");
    (state, report)
}

#[test]
fn numbers_are_measured_written_and_in_force_at_the_next_start() {
    let (state, report) = tuned();
    let file = state.path().join("beltway/tune.toml");
    assert_eq!(report["written"].as_str(), file.to_str());
    let mode = fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o644, "the server's user reads it");
    for (number, bounds) in [
        ("copy_up_to", 0..=32 << 10),
        ("sendfile_from", 4 << 10..=256 << 10),
        ("splice_from", 16 << 10..=16 << 20),
    ] {
        let value = report["use"][number].as_u64().expect("it was measured");
        assert!(bounds.contains(&value), "{number} = {value}");
    }
    // Loopback says nothing about it.
    assert!(report["use"].get("zerocopy_from").is_none());
    assert!(report["notes"].to_string().contains("--route"), "{report}");
    let sizes = report["sizes"].as_array().unwrap().len();
    for way in ["copy", "memory", "sendfile", "relay", "splice"] {
        let row = report["cpu_ns"][way].as_array().expect("it was measured");
        assert_eq!(row.len(), sizes);
        assert!(row[0].as_u64().expect("for the least") > 0);
    }
    on_both(|engine| {
        let tree = Tree::new();
        let sizes = [100, 5000, 20_000, 70_000, 300_000];
        for size in sizes {
            tree.write(&format!("{size}.bin"), noise(size));
        }
        let server = Setup::serve(engine, tree.root())
            .environment("XDG_STATE_HOME", state.path().to_str().unwrap())
            .start();
        let told = format!("tuning={:?}", file.display().to_string());
        let plain = format!("tuning={}", file.display());
        let log = server.stderr();
        assert!(log.contains(&told) || log.contains(&plain), "{log}");
        let mut client = server.connect();
        for size in sizes {
            assert!(client.get(&format!("/{size}.bin")).body == noise(size));
        }
    });
}

/// A peer in another network, which takes all that comes, of each connection at most so much.
fn peer(elsewhere: &Elsewhere, most: u64) -> SocketAddr {
    let theirs = elsewhere.theirs;
    let listener = elsewhere.run(|| TcpListener::bind((theirs, 0)).expect("a free port"));
    let address = listener.local_addr().expect("it is bound");
    // It ends with this process.
    thread::spawn(move || {
        let mut connections = Vec::new();
        while let Ok((socket, _)) = listener.accept() {
            connections.push(socket.try_clone());
            thread::spawn(move || io::copy(&mut socket.take(most), &mut io::sink()));
        }
    });
    address
}

#[test]
fn a_route_to_another_machine_is_measured_and_one_on_which_the_kernel_copies_is_told() {
    let Some(elsewhere) = Elsewhere::new() else {
        return;
    };
    let state = tempfile::tempdir().unwrap();
    let to = peer(&elsewhere, u64::MAX);
    let mut command = program();
    command
        .args(["tune", "--quick", "--json", &format!("--route={to}")])
        .arg(state.path())
        .env("XDG_STATE_HOME", state.path());
    let output = output(&mut command);
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    let report: serde_json::Value = serde_json::from_str(&output.stdout).expect("it is JSON");
    assert_eq!(report["route"], to.to_string());
    let written = fs::read_to_string(state.path().join("beltway/tune.toml")).unwrap();
    assert!(written.contains(&to.to_string()), "{written}");
    assert!(report["use"]["sendfile_from"].is_u64(), "{report}");
    let notes = report["notes"].to_string();
    if uring_missing().is_some() {
        assert!(notes.contains("zerocopy_from wasn't measured"), "{notes}");
        return;
    }
    // A pair of devices within one machine: the bytes are copied where they leave the first one.
    assert!(notes.contains("the kernel copies all the same"), "{notes}");
    assert!(report["use"].get("zerocopy_from").is_none(), "{report}");
    assert!(report["cpu_ns"].get("zerocopy").is_none(), "{report}");
}

#[test]
fn a_peer_that_takes_no_more_ends_the_measurement_of_its_route_alone() {
    let Some(elsewhere) = Elsewhere::new() else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    // Neither way has come to its end by then: it sends at least so much for each size.
    for most in [0, 24 << 20] {
        let to = peer(&elsewhere, most);
        let mut command = program();
        command.args([
            "tune",
            "--quick",
            "--dry-run",
            "--json",
            &format!("--route={to}"),
        ]);
        let output = output_within(3 * PATIENCE, command.arg(directory.path()));
        assert_eq!(output.code, Some(0), "{}", output.stderr);
        let report: serde_json::Value = serde_json::from_str(&output.stdout).expect("it is JSON");
        let notes = report["notes"].to_string();
        assert!(notes.contains(&format!("measured: {to}")), "{notes}");
        assert!(report["use"]["sendfile_from"].is_u64(), "{report}");
    }
}

#[test]
fn numbers_that_are_stale_or_broken_are_refused_with_a_warning() {
    let (state, _) = tuned();
    let file = state.path().join("beltway/tune.toml");
    let good = fs::read_to_string(&file).unwrap();
    let kernel = good.lines().find(|line| line.starts_with("kernel = "));
    let tree = Tree::with(&[("a.txt", "hello")]);
    for (text, told) in [
        (
            good.replace(kernel.unwrap(), "kernel = \"2.6.32\""),
            "stale",
        ),
        (
            good.replace("copy_up_to = ", "copy_up_to = 99999999"),
            "copy_up_to",
        ),
        ("\0".repeat(100), "no TOML"),
    ] {
        fs::write(&file, text).unwrap();
        let server = Setup::serve(Engine::Epoll, tree.root())
            .environment("XDG_STATE_HOME", state.path().to_str().unwrap())
            .start();
        let log = server.stderr();
        assert!(log.contains("tune.toml can't be used"), "{log}");
        assert!(
            log.contains(told) && log.contains("run `beltway tune` again"),
            "{log}"
        );
        assert_eq!(server.connect().get("/a.txt").text(), "hello");
    }
}

#[test]
fn nothing_is_written_where_that_isnt_wanted_or_cant_be() {
    let state = tempfile::tempdir().unwrap();
    let tune = |arguments: &[&str]| {
        let mut command = program();
        let command = command.args(["tune", "--quick"]).args(arguments);
        output(command.env("XDG_STATE_HOME", state.path()))
    };
    let directory = state.path().to_str().unwrap().to_owned();
    let shown = tune(&["--dry-run", &directory]);
    assert_eq!(shown.code, Some(0), "{}", shown.stderr);
    for told in ["sendfile", "processor time", "copy_up_to:", "note: "] {
        assert!(shown.stdout.contains(told), "{}", shown.stdout);
    }
    assert!(!shown.stdout.contains('\x1b'), "no terminal, no colours");
    assert_eq!(fs::read_dir(state.path()).unwrap().count(), 0);
    for (arguments, told) in [
        (["/nonexistent", "--dry-run"], "/nonexistent"),
        (
            ["/proc/self", "--dry-run"],
            "name a directory of the same disk",
        ),
        ([&*directory, "--output=/proc/beltway.toml"], "can't write"),
    ] {
        let failed = tune(&arguments);
        assert_eq!(failed.code, Some(1), "{}", failed.stdout);
        assert!(failed.stderr.contains(told), "{}", failed.stderr);
    }
}
