//! Another machine, as far as sockets can tell.

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::AsFd as _;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Another machine, as far as sockets can tell: a network namespace, and a pair of devices between it
/// and ours. It is gone at the end of the test.
pub(crate) struct Elsewhere {
    name: String,
    /// Our address on the way there.
    pub(crate) ours: Ipv4Addr,
    /// Its address.
    pub(crate) theirs: Ipv4Addr,
}

/// How many this process has made: each has a network of its own.
static NEXT: AtomicU32 = AtomicU32::new(0);

impl Elsewhere {
    /// `None`, with a word, where that isn't permitted.
    pub(crate) fn new() -> Option<Self> {
        let id = std::process::id();
        let place = NEXT.fetch_add(1, Ordering::Relaxed);
        // For tests of networks (RFC 2544 §C.2.2): 2^15 networks of two addresses.
        let network = (id * 8 + place) & 0x7fff;
        let net =
            |host| Ipv4Addr::from(u32::from(Ipv4Addr::new(198, 18, 0, host)) + (network << 2));
        let (name, ours, theirs) = (format!("bw{id}x{place}"), net(1), net(2));
        let elsewhere = Self { name, ours, theirs };
        let (name, device) = (&elsewhere.name, format!("{}v", elsewhere.name));
        let done = [
            format!("netns add {name}"),
            format!("link add {device} type veth peer name eth0 netns {name}"),
            format!("addr add {ours}/30 dev {device}"),
            format!("link set {device} up"),
            format!("-n {name} addr add {theirs}/30 dev eth0"),
            format!("-n {name} link set eth0 up"),
        ]
        .iter()
        .all(|line| ip(line));
        if !done {
            crate::support::skipped("no network namespace can be made (root and ip(8) are needed)");
            return None;
        }
        Some(elsewhere)
    }

    /// Does something in a thread that is there.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let space = File::open(format!("/run/netns/{}", self.name)).expect("it was made");
        std::thread::scope(|scope| {
            let there = scope.spawn(move || {
                let kind = Some(LinkNameSpaceType::Network);
                move_into_link_name_space(space.as_fd(), kind).expect("we are root");
                work()
            });
            there.join().expect("the work is done")
        })
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        ip(&format!("netns del {}", self.name));
    }
}

fn ip(line: &str) -> bool {
    let output = Command::new("ip").args(line.split(' ')).output();
    output.is_ok_and(|output| output.status.success())
}
