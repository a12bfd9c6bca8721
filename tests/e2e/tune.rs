//! `beltway tune`: what it measures is written where a start reads it, and what is stale is refused.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use crate::support::server::{output, program};
use crate::support::{Engine, Setup, Tree, noise, on_both};

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
