//! What every end-to-end test needs: engines, a server, a client, and waiting with a deadline.
//!
//! The tests know nothing of the library: they start the binary, write files, and speak over
//! sockets. Whatever they wait for has a deadline, so that a server that hangs is a failure with a
//! message and not a run that never ends.

pub(crate) mod child;
pub(crate) mod client;
pub(crate) mod elsewhere;
pub(crate) mod records;
pub(crate) mod server;
pub(crate) mod tree;

use std::fs::File;
use std::path::Path;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

pub(crate) use client::{Client, End, Response};
pub(crate) use server::{Server, Setup};
pub(crate) use tree::Tree;

/// Longest wait for anything that should happen at once.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// What performs the server's I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Engine {
    /// io_uring.
    Uring,
    /// epoll.
    Epoll,
}

impl Engine {
    /// As `--engine` takes it.
    pub(crate) fn flag(self) -> &'static str {
        match self {
            Self::Uring => "--engine=uring",
            Self::Epoll => "--engine=epoll",
        }
    }

    /// What the server says on stderr when it uses it.
    pub(crate) fn line(self) -> &'static str {
        match self {
            Self::Uring => "engine=io_uring",
            Self::Epoll => "engine=epoll",
        }
    }
}

/// Says with which engine a test failed.
struct Label(Engine);

impl Drop for Label {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("--- that was with {:?}", self.0);
        }
    }
}

/// Runs a test on both engines. Where this machine has no io_uring that half is left out, and the
/// test says so.
pub(crate) fn on_both(test: impl Fn(Engine)) {
    {
        let _label = Label(Engine::Epoll);
        test(Engine::Epoll);
    }
    match uring_missing() {
        None => {
            let _label = Label(Engine::Uring);
            test(Engine::Uring);
        }
        Some(why) => skipped(format_args!("io_uring, only epoll was tested: {why}")),
    }
}

/// Why this machine has no io_uring; `None` where it has. Asked of the kernel, not of the server: a
/// server that can't use what the kernel has must fail its tests.
pub(crate) fn uring_missing() -> Option<&'static str> {
    static MISSING: OnceLock<Option<String>> = OnceLock::new();
    let missing = MISSING.get_or_init(|| {
        io_uring::IoUring::new(8)
            .err()
            .map(|error| format!("io_uring_setup: {error}"))
    });
    missing.as_deref()
}

/// Waits until `probe` gives something, asking every few milliseconds.
pub(crate) fn wait_for<T>(
    what: &str,
    patience: Duration,
    mut probe: impl FnMut() -> Option<T>,
) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}: not within {patience:?}");
        thread::park_timeout(Duration::from_millis(5));
    }
}

/// Waits until a condition holds.
pub(crate) fn wait_until(what: &str, patience: Duration, mut holds: impl FnMut() -> bool) {
    wait_for(what, patience, || holds().then_some(()));
}

/// Says why something isn't tested here: for who reads the output of this test, and, as nobody sees that
/// of one that passes, in the file that `BELTWAY_SKIPS` names.
pub(crate) fn skipped(why: impl std::fmt::Display) {
    use std::io::Write as _;
    eprintln!("SKIPPED: {why}");
    if let Some(path) = std::env::var_os("BELTWAY_SKIPS") {
        let file = File::options().append(true).create(true).open(path);
        // At one go: others write there, too.
        let written = file.and_then(|mut file| file.write_all(format!("{why}\n").as_bytes()));
        written.expect("a list of what is skipped");
    }
}

/// Whether this program is installed; where it isn't, that is said.
pub(crate) fn has(program: &str) -> bool {
    let found = std::process::Command::new(program)
        .arg("--version")
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .status();
    if found.is_err() {
        skipped(format_args!("{program} is not installed"));
    }
    found.is_ok()
}

/// Reads a response with a Content-Length: its head and its content.
pub(crate) fn read_response(from: &mut impl std::io::Read) -> (String, Vec<u8>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        from.read_exact(&mut byte).expect("a head");
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).expect("text");
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("Content-Length: "))
        .map_or(0, |length| length.parse().expect("a number"));
    let mut content = vec![0; length];
    from.read_exact(&mut content).expect("all of the content");
    (head, content)
}

/// Bytes that compress badly and differ everywhere, so that a part from a wrong place shows. The
/// same for the same length.
pub(crate) fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Resident memory of a process that isn't shared with files, in bytes.
pub(crate) fn memory(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let mut lines = status.lines();
    let kib = lines.find_map(|line| line.strip_prefix("RssAnon:")?.strip_suffix(" kB"));
    kib.expect("the kernel tells it")
        .trim()
        .parse::<u64>()
        .unwrap()
        << 10
}

/// Bytes of a file that are in memory.
#[allow(
    unsafe_code,
    reason = "nothing else tells it of a file that others own"
)]
pub(crate) fn resident(path: &Path) -> usize {
    let file = File::open(path).expect("it was written");
    let length = file.metadata().expect("an open file").len() as usize;
    let mut pages = vec![0_u8; length.div_ceil(4096)];
    // SAFETY: a new mapping that nobody reads; the vector has a byte for each page of it.
    let counted = unsafe {
        let none = std::ptr::null_mut();
        let at = mmap(none, length, ProtFlags::READ, MapFlags::SHARED, &file, 0).expect("mmap");
        let counted = libc::mincore(at, length, pages.as_mut_ptr());
        munmap(at, length).expect("it is mapped");
        counted
    };
    assert_eq!(counted, 0, "{}", std::io::Error::last_os_error());
    pages.iter().filter(|page| **page & 1 == 1).count() * 4096
}

/// How many descriptors a process has open.
pub(crate) fn descriptors(pid: u32) -> usize {
    let path = format!("/proc/{pid}/fd");
    std::fs::read_dir(path).expect("it runs").count()
}
