//! Files that aren't in memory: they arrive whole, and the disk is asked once for all who want them.

use std::fs::File;
use std::io::IoSliceMut;
use std::thread;

use rustix::fs::{Advice, fadvise};
use rustix::io::{Errno, ReadWriteFlags, preadv2};

use crate::support::server::serve;
use crate::support::{Tree, noise, on_both};

/// Large enough that it comes in many windows.
const SIZE: usize = 40_000_003;

/// Takes a file out of memory; says whether the kernel did so. On a tmpfs it can't.
fn make_cold(file: &File) -> bool {
    file.sync_all().expect("a disk");
    fadvise(file, 0, None, Advice::DontNeed).expect("advice is taken");
    let mut byte = [0];
    let mut slices = [IoSliceMut::new(&mut byte)];
    preadv2(file, &mut slices, SIZE as u64 / 2, ReadWriteFlags::NOWAIT) == Err(Errno::AGAIN)
}

/// Bytes that a process has had read from disks; `None` where the kernel doesn't count.
fn read_from_disks(pid: u32) -> Option<u64> {
    let counted = std::fs::read_to_string(format!("/proc/{pid}/io")).ok()?;
    let line = counted
        .lines()
        .find_map(|line| line.strip_prefix("read_bytes: "));
    line?.parse().ok()
}

#[test]
fn eight_clients_of_a_cold_file_have_it_read_once() {
    on_both(|engine| {
        let tree = Tree::new();
        let content = noise(SIZE);
        tree.write("large.bin", &content);
        let server = serve(engine, &tree, &[]);
        let file = File::open(tree.path("large.bin")).expect("the file");
        let before = read_from_disks(server.pid());
        if !make_cold(&file) {
            crate::support::skipped("the file stays in memory, it lies on no disk");
            return;
        }
        let clients: Vec<_> = (0..8)
            .map(|_| {
                let mut client = server.connect();
                thread::spawn(move || client.get("/large.bin").body)
            })
            .collect();
        for client in clients {
            let body = client.join().expect("a client");
            assert!(body == content, "it arrives whole");
        }
        let (Some(before), Some(after)) = (before, read_from_disks(server.pid())) else {
            crate::support::skipped("in part: the kernel doesn't count what is read from disks");
            return;
        };
        let read = after - before;
        assert!(read < 2 * SIZE as u64, "{read} bytes were read");
    });
}
