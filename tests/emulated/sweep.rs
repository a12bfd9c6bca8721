//! What runs in an emulated machine that has little memory: a sweep over an archive which doesn't fit into it.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::server::Address;
use crate::support::{Engine, Server, Setup, noise, on_both, resident, uring_missing};

/// Memory of the machine. Of less the buffers for direct reads (32 MiB) would take too large a part.
pub(crate) const MEMORY_MIB: u32 = 256;

const MIB: usize = 1 << 20;
/// What is in memory before.
const HOT: usize = 16 * MIB;
/// The archive, which is larger than memory.
const FILES: usize = 34;
const FILE: usize = 8 * MIB;

/// Emulation is slow.
const PATIENCE: Duration = Duration::from_secs(60);

/// Makes a disk with all of it in this directory; `None` where nothing can make its file system.
pub(crate) fn disk(directory: &Path) -> Option<PathBuf> {
    let files = directory.join("files");
    fs::create_dir(&files).unwrap();
    fs::write(files.join("hot.bin"), noise(HOT)).unwrap();
    let content = noise(FILE);
    for file in 0..FILES {
        fs::write(files.join(format!("{file}.bin")), &content).unwrap();
    }
    let disk = directory.join("disk");
    let made = ["mke2fs", "/usr/sbin/mke2fs", "/sbin/mke2fs"]
        .iter()
        .any(|program| {
            let made = Command::new(program)
                .args(["-q", "-t", "ext4", "-O", "^has_journal", "-d"])
                .args([&files, &disk])
                .arg(format!("{}M", (HOT + FILES * FILE) / MIB + 64))
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
            made.is_ok_and(|status| status.success())
        });
    fs::remove_dir_all(&files).unwrap();
    made.then_some(disk)
}

/// Asks for a file, and gives the number of bytes that came: to keep them would take the memory that this is
/// about.
fn get(client: &mut TcpStream, name: &str) -> usize {
    let request = format!("GET /{name} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    client.write_all(request.as_bytes()).unwrap();
    let mut room = vec![0; 256 << 10];
    let (mut head, mut got, mut length) = (Vec::new(), 0, None);
    while length != Some(got) {
        let read = client.read(&mut room).expect("it goes on");
        assert!(read > 0, "{name} is cut after {got} bytes");
        got += read;
        if length.is_none() {
            head.extend_from_slice(&room[..read]);
            let text = String::from_utf8_lossy(&head);
            let Some((head, _)) = text.split_once("\r\n\r\n") else {
                continue;
            };
            let mut lines = head.lines();
            let number = lines.find_map(|line| line.strip_prefix("Content-Length: "));
            let number: usize = number.expect("a length").parse().unwrap();
            length = Some(head.len() + 4 + number);
        }
    }
    got
}

/// Reads of the disk so far, in sectors (/proc/diskstats).
fn sectors_read() -> u64 {
    let all = fs::read_to_string("/proc/diskstats").unwrap();
    let mut lines = all.lines().map(|line| line.split_ascii_whitespace());
    let mut of_disk = lines.find(|line| line.clone().nth(2) == Some("vda"));
    let field = of_disk.as_mut().and_then(|line| line.nth(5));
    field.expect("it is there").parse().unwrap()
}

fn transfers(server: &Server) -> u64 {
    let status = server.status();
    let core = &status["generations"][0]["workers"][0]["cores"][0]["direct"];
    core["transfers"].as_u64().expect("a number")
}

/// What a sweep leaves: bytes of the hot file in memory, those that the disk is asked for when it is wanted once
/// more, and transfers past the page cache.
fn sweep(engine: Engine, direct: &str) -> (usize, u64, u64) {
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
    let config = format!(
        "[server]\nworkers = 1\n[site.\"localhost\"]\nlisten = [\"127.0.0.1:0\"]\nroot = \"/srv\"\n\
         direct = {direct}\n"
    );
    let server = Setup::run(engine, &config).start();
    let address: SocketAddr = match server.address() {
        Address::Tcp(address) => *address,
        Address::Unix(_) => panic!("a TCP socket"),
    };
    let mut client = TcpStream::connect(address).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    // Once: what was asked for twice the kernel keeps by itself, up to half of memory.
    assert!(get(&mut client, "hot.bin") > HOT);
    for file in 0..FILES {
        assert!(get(&mut client, &format!("{file}.bin")) > FILE);
    }
    let kept = resident(Path::new("/srv/hot.bin"));
    let before = sectors_read();
    get(&mut client, "hot.bin");
    let read = (sectors_read() - before) * 512;
    (kept, read, transfers(&server))
}

/// The test, in a machine with [`MEMORY_MIB`].
pub(crate) fn leaves_what_everybody_wants() {
    assert_eq!(uring_missing(), None, "this kernel has io_uring");
    on_both(|engine| {
        let auto @ (kept, read, transfers) = sweep(engine, "\"auto\"");
        eprintln!("{engine:?}, auto: kept, read again, transfers: {auto:?}");
        assert!(kept >= HOT / 10 * 9, "the sweep has pushed it out");
        assert!(read <= HOT as u64 / 10, "the disk was asked for it");
        assert!(transfers >= FILES as u64 / 2);
        // The same without it: else the kernel needs no help, and this test shows nothing.
        let off @ (kept, read, transfers) = sweep(engine, "false");
        eprintln!("{engine:?}, off: kept, read again, transfers: {off:?}");
        assert!(kept < HOT / 2 && read > HOT as u64 / 2 && transfers == 0);
    });
}
