//! Cold files that are read past the page cache: they arrive whole, and push nothing out of it.

use std::fs::File;
use std::net::Ipv4Addr;
use std::time::Duration;

use rustix::fs::{Advice, fadvise, statfs};

use crate::support::client::{Client, End};
use crate::support::elsewhere::Elsewhere;
use crate::support::server::Server;
use crate::support::{self, Engine, Setup, Tree, noise, on_both, wait_until};

const MIB: usize = 1 << 20;

const PATIENCE: Duration = Duration::from_secs(20);

/// `TMPFS_MAGIC`: its files are nowhere but in the page cache.
const TMPFS: u64 = 0x0102_1994;

/// A tree on a disk; `None`, with a word, where temporary files are in memory.
pub(crate) fn tree_on_disk() -> Option<Tree> {
    let tree = Tree::new();
    let kind = statfs(tree.root()).expect("it is there").f_type;
    if kind as u64 == TMPFS {
        crate::support::skipped(
            "temporary files are on tmpfs; set TMPDIR to a directory on a disk",
        );
        return None;
    }
    Some(tree)
}

/// Writes a file that isn't in memory afterwards, and that its times tell from another one.
pub(crate) fn cold(tree: &Tree, name: &str, content: &[u8]) {
    tree.write(name, content);
    evict(tree, name);
}

pub(crate) fn evict(tree: &Tree, name: &str) {
    let file = File::open(tree.path(name)).expect("it was written");
    file.sync_all().expect("a disk");
    fadvise(&file, 0, None, Advice::DontNeed).expect("advice");
    let changed = file.metadata().expect("an open file").modified();
    let changed = changed.expect("a disk has times");
    wait_until("the file has rested", PATIENCE, || {
        changed
            .elapsed()
            .is_ok_and(|age| age > Duration::from_millis(100))
    });
}

/// Bytes of a file that are in memory.
fn resident(tree: &Tree, name: &str) -> usize {
    support::resident(&tree.path(name))
}

fn start(engine: Engine, tree: &Tree, server: &str, site: &str) -> Server {
    start_at(Ipv4Addr::LOCALHOST, engine, tree, server, site)
}

fn start_at(at: Ipv4Addr, engine: Engine, tree: &Tree, server: &str, site: &str) -> Server {
    let root = tree.root();
    let config = format!(
        "[server]\n{server}\n[site.\"localhost\"]\nlisten = [\"{at}:0\"]\nroot = {root:?}\n{site}\n"
    );
    Setup::run(engine, &config).start()
}

/// What the worker has counted.
pub(crate) fn counted(server: &Server, what: &str) -> u64 {
    let status = server.status();
    let cores = status["generations"][0]["workers"][0]["cores"].as_array();
    let cores = cores.expect("a list").iter();
    cores
        .map(|core| core["direct"][what].as_u64().expect("a number"))
        .sum()
}

/// A client that has room for little, so that the server has to wait for it.
fn narrow(server: &Server) -> Client {
    Client::connect_with(server.address(), |socket| {
        socket.set_recv_buffer_size(16 << 10).expect("a size");
    })
}

#[test]
fn a_sweep_over_a_cold_archive_arrives_whole_and_leaves_the_page_cache_alone() {
    on_both(|engine| {
        let Some(tree) = tree_on_disk() else { return };
        let content = noise(3 * MIB + 4097);
        tree.write("hot.bin", noise(MIB));
        let sizes = [MIB, MIB + 1, 2 * MIB - 513, content.len()];
        for size in sizes {
            cold(&tree, &format!("{size}.bin"), &content[..size]);
        }
        let server = start(engine, &tree, "", "direct = true");
        let mut client = server.connect();
        assert_eq!(client.get("/hot.bin").body.len(), MIB);
        for size in sizes {
            let response = client.get(&format!("/{size}.bin"));
            assert!(response.body == content[..size], "{size} bytes differ");
            let resident = resident(&tree, &format!("{size}.bin"));
            assert!(resident < size / 2, "{resident} of {size} are in memory");
        }
        assert_eq!(resident(&tree, "hot.bin"), MIB);
        assert_eq!(counted(&server, "transfers"), sizes.len() as u64);
        assert!(counted(&server, "read_bytes") >= sizes.iter().sum::<usize>() as u64);
    });
}

#[test]
fn parts_of_a_cold_file_are_those_that_were_asked_for() {
    on_both(|engine| {
        let Some(tree) = tree_on_disk() else { return };
        let content = noise(4 * MIB + 777);
        let server = start(engine, &tree, "", "direct = true");
        let mut client = server.connect();
        tree.write("file", &content);
        for (first, last) in [
            (0, 199_999),
            (4095, 204_800),
            (MIB - 1, 3 * MIB),
            (3 * MIB + 5, 4 * MIB + 776),
        ] {
            evict(&tree, "file");
            let range = format!("Range: bytes={first}-{last}\r\n");
            let response = client.get_with("/file", &range);
            assert_eq!(response.status, 206);
            assert!(response.body == content[first..=last], "{first}-{last}");
        }
        evict(&tree, "file");
        let two = "Range: bytes=100-300099,2000000-2299999\r\n";
        let body = client.get_with("/file", two).body;
        for part in [&content[100..300_100], &content[2_000_000..2_300_000]] {
            assert!(body.windows(part.len()).any(|window| window == part));
        }
        assert!(counted(&server, "transfers") >= 4);
    });
}

#[test]
fn clients_that_want_the_same_cold_file_have_it_read_once() {
    on_both(|engine| {
        let Some(tree) = tree_on_disk() else { return };
        let content = noise(6 * MIB);
        cold(&tree, "file", &content);
        let server = start(engine, &tree, "workers = 1", "direct = true");
        let mut clients: Vec<_> = (0..4).map(|_| server.connect()).collect();
        for client in &mut clients {
            client.send("GET /file HTTP/1.1\r\nHost: localhost\r\n\r\n");
        }
        std::thread::scope(|scope| {
            for client in &mut clients {
                let content = &content;
                scope.spawn(move || assert!(client.response().body == *content));
            }
        });
        let read = counted(&server, "read_bytes");
        assert!(read < 2 * content.len() as u64, "{read} bytes were read");
        assert!(counted(&server, "shared_blocks") > 0);
    });
}

#[test]
fn a_client_that_stops_reading_gives_its_blocks_back_and_still_gets_everything() {
    on_both(|engine| {
        let Some(tree) = tree_on_disk() else { return };
        let content = noise(8 * MIB);
        cold(&tree, "file", &content);
        let server = start(engine, &tree, "workers = 1", "direct = true");
        let mut client = narrow(&server);
        client.send("GET /file HTTP/1.1\r\nHost: localhost\r\n\r\n");
        wait_until("the blocks are given back", PATIENCE, || {
            counted(&server, "given_back") > 0
        });
        assert!(client.response().body == content);
    });
}

#[test]
fn a_cold_file_that_is_cut_on_the_way_ends_in_a_reset() {
    on_both(|engine| {
        let Some(tree) = tree_on_disk() else { return };
        cold(&tree, "file", &noise(16 * MIB));
        let server = start(engine, &tree, "workers = 1", "direct = true");
        let mut client = narrow(&server);
        client.send("GET /file HTTP/1.1\r\nHost: localhost\r\n\r\n");
        let head = client.head_response();
        assert_eq!(head.must("Content-Length"), (16 * MIB).to_string());
        let file = File::options().write(true).open(tree.path("file"));
        let file = file.expect("it is ours");
        file.set_len(MIB as u64).expect("a disk");
        let (rest, end) = client.rest();
        assert!(rest.len() < 16 * MIB);
        assert!(matches!(end, End::Reset), "{end:?}");
        tree.write("other", "still served");
        assert_eq!(server.connect().get("/other").text(), "still served");
    });
}

#[test]
fn what_is_sent_without_a_copy_is_whole_and_its_memory_comes_back() {
    if let Some(why) = crate::support::uring_missing() {
        crate::support::skipped(format_args!("sends without a copy need io_uring: {why}"));
        return;
    }
    let Some(tree) = tree_on_disk() else { return };
    let content = noise(5 * MIB + 99);
    cold(&tree, "file", &content);
    let keys = "workers = 1\nzerocopy = \"on\"";
    let server = start(Engine::Uring, &tree, keys, "direct = true");
    for _ in 0..3 {
        evict(&tree, "file");
        assert!(server.connect().get("/file").body == content);
    }
    if counted(&server, "zerocopy_sends") == 0 {
        crate::support::skipped(
            "this kernel has no send without a copy that reports its use (6.2)",
        );
        return;
    }
    // Those that are gone before the last notification leave nothing behind either.
    for _ in 0..20 {
        evict(&tree, "file");
        let mut client = narrow(&server);
        client.send("GET /file HTTP/1.1\r\nHost: localhost\r\n\r\n");
        client.await_bytes(1000);
        client.abort();
    }
    let last = || server.status()["generations"][0]["workers"][0]["cores"][0].take();
    wait_until("the buffers are back", PATIENCE, || {
        let core = last();
        core["connections"] == 0 && core["memory_bytes"].as_u64().is_some_and(|it| it < 4 << 20)
    });
    assert!(server.connect().get("/file").body == content);
}

#[test]
fn a_route_on_which_the_kernel_copies_is_not_asked_for_more() {
    if let Some(why) = crate::support::uring_missing() {
        crate::support::skipped(format_args!("sends without a copy need io_uring: {why}"));
        return;
    }
    let Some(tree) = tree_on_disk() else { return };
    let Some(elsewhere) = Elsewhere::new() else {
        return;
    };
    let content = noise(6 * MIB);
    cold(&tree, "file", &content);
    let ours = elsewhere.ours;
    // So few buffers that they can be registered even where nobody may lock more memory than usual (8 MiB).
    let keys = "workers = 1\nmemory_limit = \"40MiB\"";
    let server = start_at(ours, Engine::Uring, &tree, keys, "direct = true");
    let get = || {
        evict(&tree, "file");
        let body = elsewhere.run(|| server.connect().get("/file").body);
        assert!(body == content);
        counted(&server, "zerocopy_sends")
    };
    let first = get();
    if first == 0 {
        crate::support::skipped(
            "sends without a copy need kernel 6.2 and an RLIMIT_MEMLOCK of 8 MiB",
        );
        return;
    }
    // What goes through a pair of devices in one machine is copied at its other end.
    wait_until("it says that it has copied", PATIENCE, || {
        counted(&server, "zerocopy_copied") > 0
    });
    assert_eq!(get(), first, "it was tried again");
}
