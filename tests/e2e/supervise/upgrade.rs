//! Binary upgrade: same process, same sockets, another program; and back when it fails.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

use super::load::{LONG, Load};
use super::{config, config_with};
use crate::support::server::PROGRAM;
use crate::support::{Client, End, PATIENCE, Server, Setup, Tree, noise, on_both, wait_until};

/// A directory with the program, which is started from there and replaced there.
struct Programs(tempfile::TempDir);

impl Programs {
    fn new() -> Self {
        // Beside the program, so that a link to it can be made.
        let beside = Path::new(PROGRAM).parent().expect("a directory");
        let programs = Self(tempfile::tempdir_in(beside).expect("a directory"));
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(programs.0.path(), open).expect("permissions");
        copy(Path::new(PROGRAM), &programs.path());
        programs
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("beltway")
    }

    /// Puts another program in its place, as a package manager does.
    fn replace(&self, with: &Path) {
        let new = self.0.path().join("new");
        copy(with, &new);
        fs::rename(new, self.path()).expect("a rename");
    }

    /// A program that does as the real one, but for what `code` does first with `argv`.
    fn replace_with(&self, code: &str) {
        let source = self.0.path().join("program.c");
        let text = format!(
            "#include <string.h>\n#include <unistd.h>\nint main(int argc, char **argv) {{\n\
             const char *command = argc > 1 ? argv[1] : \"\";\n{code}\n\
             execv({PROGRAM:?}, argv);\nreturn 9;\n}}\n"
        );
        fs::write(&source, text).expect("a source");
        let program = self.0.path().join("compiled");
        let status = Command::new("cc")
            .arg("-o")
            .arg(&program)
            .arg(&source)
            .status();
        assert!(status.expect("a C compiler").success());
        self.replace(&program);
    }
}

/// What a program does first that does this as a worker.
fn as_worker(what: &str) -> String {
    format!("if (!strcmp(command, \"worker\")) {what};")
}

/// Copies a file by a process of its own. Were it open for writing here, another test's child could have
/// it open for a moment, too, and nobody could run it then (ETXTBSY).
fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg(from).arg(to).status();
    assert!(status.expect("cp").success());
}

/// The inode of the program that a process runs.
fn image(pid: u32) -> u64 {
    fs::metadata(format!("/proc/{pid}/exe"))
        .expect("it runs")
        .ino()
}

fn start(engine: crate::support::Engine, programs: &Programs, text: &str) -> Server {
    Setup::run(engine, text).program(programs.path()).start()
}

#[test]
fn twenty_upgrades_under_load_lose_nothing() {
    const UPGRADES: usize = 20;
    const IDLE: usize = 500;
    on_both(|engine| {
        let (tree, programs) = (Tree::new(), Programs::new());
        tree.write("long.bin", noise(LONG));
        let server = start(engine, &programs, &config(&tree, "ok"));
        let (pid, descriptors) = (server.pid(), server.descriptors());
        let mut idle: Vec<Client> = (0..IDLE).map(|_| server.connect()).collect();
        for client in &mut idle {
            assert_eq!(client.get("/ok").text(), "ok");
        }
        let load = Load::start(server.address());
        for upgrade in 0..UPGRADES {
            let (before, worker) = (image(pid), server.worker());
            programs.replace(Path::new(PROGRAM));
            server.ask_must("upgrade");
            assert_ne!(
                image(pid),
                before,
                "upgrade {upgrade}: another program runs"
            );
            assert_ne!(server.worker(), worker);
            // At most four generations drain: the idle ones of this one go to the new one.
            for client in &mut idle {
                let response = client.get("/ok");
                assert_eq!(response.text(), "ok");
                if response.closes() {
                    assert_eq!(client.end(), End::Closed);
                    *client = server.connect();
                }
            }
            assert!(load.is_whole(), "upgrade {upgrade}");
            wait_until("the old generation ends", 2 * PATIENCE, || {
                server.workers("draining").is_empty()
            });
        }
        load.stop();
        assert_eq!(server.status()["pid"], pid);
        let now = server.descriptors();
        assert!(
            now <= descriptors + 2,
            "the master had {descriptors}, and has {now}"
        );
    });
}

#[test]
fn an_upgrade_that_fails_rolls_back_and_loses_nothing() {
    on_both(|engine| {
        let (tree, programs) = (Tree::new(), Programs::new());
        tree.write("long.bin", noise(LONG));
        let text = config(&tree, "ok");
        let server = start(engine, &programs, &text);
        let (pid, worker) = (server.pid(), server.worker());
        let before = image(pid);
        let load = Load::start(server.address());
        let cases: [(&str, &dyn Fn(), &str); 3] = [
            (
                "exits at once",
                &|| programs.replace_with("return 3;"),
                "exit status: 3",
            ),
            (
                "exits as a worker",
                &|| programs.replace_with(&as_worker("return 3")),
                "exit code 3",
            ),
            (
                "is no program",
                &|| programs.replace(&server.config_file()),
                "can't be started",
            ),
        ];
        for (what, put, told) in cases {
            put();
            let output = server.control(&["upgrade"]);
            assert_eq!(output.code, Some(1), "{what}: {output:?}");
            assert!(output.stderr.contains(told), "{what}: {output:?}");
            assert_eq!(image(pid), before, "{what}");
            assert_eq!(server.workers("serving"), [worker], "{what}");
            assert!(load.is_whole(), "{what}");
        }
        programs.replace(Path::new(PROGRAM));
        server.write_config(&text.replace("[server]", "[server]\nwrokers = 1"));
        let output = server.control(&["upgrade"]);
        assert_eq!(
            output.code,
            Some(78),
            "it refuses the configuration: {output:?}"
        );
        assert!(output.stderr.contains("`wrokers`"), "{output:?}");
        assert_eq!(server.workers("serving"), [worker]);
        server.write_config(&text);
        server.must(&["upgrade"]);
        assert_ne!(image(pid), before);
        assert!(load.is_whole());
        load.stop();
    });
}

#[test]
fn an_upgrade_that_hangs_rolls_back_in_time_and_loses_nothing() {
    on_both(|engine| {
        let (tree, programs) = (Tree::new(), Programs::new());
        tree.write("long.bin", noise(LONG));
        // What doesn't hang has to be through by then on a busy machine: a start, and the check of a program.
        let text = config_with(&tree, "ok", "start_timeout = \"4s\"");
        let server = start(engine, &programs, &text);
        let (pid, worker) = (server.pid(), server.worker());
        let before = image(pid);
        let load = Load::start(server.address());
        let refused = |code: &str| {
            programs.replace_with(code);
            let reply = server.ask("upgrade");
            assert_eq!(reply["exit"], 1, "{code}: {reply}");
            assert_eq!(image(pid), before, "{code}");
            assert_eq!(server.workers("serving"), [worker], "{code}");
            assert!(load.is_whole(), "{code}");
            reply.to_string()
        };
        let told = refused("for (;;) pause();");
        // How long it was in the end, in whole seconds.
        let took = told.split_once("the check took longer than ");
        let took = took.and_then(|(_, rest)| rest.split(' ').next());
        let took = took.and_then(|number| number.parse::<u64>().ok());
        assert!(took.is_some_and(|seconds| seconds >= 4), "{told}");
        let told = refused(&as_worker("for (;;) pause()"));
        assert!(told.contains("wasn't ready within 4s"), "{told}");
        load.stop();
    });
}

#[test]
fn a_signal_upgrades_and_a_reload_and_a_respawn_work_after_it() {
    on_both(|engine| {
        let (tree, programs) = (Tree::new(), Programs::new());
        let mut server = start(engine, &programs, &config(&tree, "old"));
        let (pid, worker) = (server.pid(), server.worker());
        programs.replace(Path::new(PROGRAM));
        server.signal(Signal::USR2);
        wait_until("another worker serves", PATIENCE, || {
            let workers = server.workers("serving");
            workers.len() == 1 && workers[0] != worker
        });
        server.write_config(&config(&tree, "new"));
        server.must(&["reload"]);
        assert_eq!(server.connect().get("/ok").text(), "new");
        let worker = server.worker();
        super::respawn::kill(worker);
        assert_eq!(server.connect().get("/ok").text(), "new");
        wait_until("it is replaced", PATIENCE, || {
            let workers = server.workers("serving");
            workers.len() == 1 && workers[0] != worker
        });
        assert_eq!(server.status()["pid"], pid);
        server.signal(Signal::TERM);
        assert_eq!(server.exit_code(), Some(0));
    });
}

#[test]
fn an_upgrade_takes_a_changed_configuration_with_it() {
    on_both(|engine| {
        let (tree, programs) = (Tree::new(), Programs::new());
        let server = start(engine, &programs, &config(&tree, "old"));
        let mut idle = server.connect();
        assert_eq!(idle.get("/ok").text(), "old");
        server.write_config(&config(&tree, "new").replace("127.0.0.1:0", "127.0.0.2:0"));
        server.must(&["upgrade"]);
        let response = idle.get("/ok");
        assert_eq!((response.text(), response.closes()), ("old", true));
        wait_until("the new address is named", PATIENCE, || {
            server.named_addresses().len() == 2
        });
        let addresses = server.named_addresses();
        assert_eq!(Client::connect(&addresses[1]).get("/ok").text(), "new");
        assert!(idle.is_silent_for(Duration::ZERO) || idle.end() == End::Closed);
    });
}
