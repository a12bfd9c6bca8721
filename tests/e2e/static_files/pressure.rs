//! `direct = "auto"` while memory is short: a sweep over an archive that is larger than memory leaves in it
//! what is asked for again and again.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use super::direct::{cold, counted, evict, tree_on_disk};
use crate::support::child::Before;
use crate::support::{Engine, PATIENCE, Setup, noise, on_both, resident, wait_until};

const MIB: usize = 1 << 20;

/// What the server and the page cache of its files have together.
const LIMIT: usize = 160 * MIB;

/// More than half of it: what was asked for twice and is less the kernel keeps through a sweep by itself.
const HOT: usize = 96 * MIB;

/// An archive of more than the limit.
const FILES: usize = 24;
const FILE: usize = 8 * MIB;

/// A control group with a limit of memory. Gone at the end of the test.
struct Group(PathBuf);

impl Group {
    /// `None`, with a word, where that isn't permitted.
    fn new(name: &str) -> Option<Self> {
        let root = Path::new("/sys/fs/cgroup");
        let name = format!("beltway-test-{}-{name}", std::process::id());
        let set = |file: PathBuf, text: &str| {
            // Never a file of another file system.
            let mut file = File::options().write(true).open(file)?;
            file.write_all(text.as_bytes())
        };
        // Version 2, where memory can be limited below the root; else version 1.
        let _ = set(root.join("cgroup.subtree_control"), "+memory");
        for (parent, limit, swap) in [
            (root.to_owned(), "memory.max", "memory.swap.max"),
            (
                root.join("memory"),
                "memory.limit_in_bytes",
                "memory.memsw.limit_in_bytes",
            ),
        ] {
            if !parent.join("cgroup.procs").exists() {
                continue;
            }
            let group = Self(parent.join(&name));
            if fs::create_dir(&group.0).is_err() {
                continue;
            }
            if set(group.0.join(limit), &LIMIT.to_string()).is_ok() {
                // Where there is no swap, nothing limits it.
                let _ = set(group.0.join(swap), "0");
                return Some(group);
            }
        }
        crate::support::skipped(
            "no control group can be made with a limit of memory (root is needed)",
        );
        None
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if self.0.exists() && !std::thread::panicking() {
            wait_until("its processes are gone", PATIENCE, || {
                fs::remove_dir(&self.0).is_ok()
            });
        }
    }
}

/// Bytes of a file that everybody wants, and that are in memory after a sweep over an archive; with how many
/// transfers went past the page cache.
fn after_a_sweep(engine: Engine, direct: &str) -> Option<(usize, u64)> {
    let tree = tree_on_disk()?;
    let group = Group::new(&format!("{engine:?}"))?;
    cold(&tree, "hot.bin", &noise(HOT));
    let content = noise(FILE);
    let names: Vec<String> = (0..FILES).map(|file| format!("{file}.bin")).collect();
    for name in &names {
        tree.write(name, &content);
    }
    for name in &names {
        evict(&tree, name);
    }
    let procs = File::options()
        .write(true)
        .open(group.0.join("cgroup.procs"))
        .expect("it is ours");
    let root = tree.root();
    let config = format!(
        "[server]\nworkers = 1\n[site.\"localhost\"]\nlisten = [\"127.0.0.1:0\"]\nroot = {root:?}\n\
         direct = {direct}\n"
    );
    let joins = Before {
        group: Some(procs.as_raw_fd()),
        ..Before::default()
    };
    let server = Setup::run(engine, &config).before(joins).start();
    let mut client = server.connect();
    for _ in 0..2 {
        assert_eq!(client.get("/hot.bin").body.len(), HOT);
    }
    // The kernel may have taken some pages of it again.
    let before = resident(&tree.path("hot.bin"));
    assert!(before >= HOT / 100 * 99, "{before} before the sweep");
    for name in &names {
        assert!(
            client.get(&format!("/{name}")).body == content,
            "{name} differs"
        );
    }
    Some((
        resident(&tree.path("hot.bin")),
        counted(&server, "transfers"),
    ))
}

#[test]
fn a_sweep_over_more_than_there_is_memory_leaves_what_everybody_wants() {
    on_both(|engine| {
        let Some((kept, transfers)) = after_a_sweep(engine, "\"auto\"") else {
            return;
        };
        let seen = format!("{engine:?}, auto: {kept} of {HOT} kept, {transfers} transfers direct");
        eprintln!("{seen}");
        assert!(kept >= HOT / 10 * 9, "{seen}");
        assert!(transfers >= FILES as u64 / 2, "{seen}");
        // Without it the kernel decides, and some keep what others don't. That it makes a difference is shown by
        // a machine whose kernel is known (`--test emulated`).
        let (kept, transfers) = after_a_sweep(engine, "false").expect("as before");
        eprintln!("{engine:?}, off: {kept} of {HOT} kept");
        assert_eq!(transfers, 0, "{engine:?}, off");
    });
}
