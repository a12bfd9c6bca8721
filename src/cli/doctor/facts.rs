//! What the machine says when it is asked. Everything here is harmless: nothing is changed, and what
//! is made for a trial goes at once.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, CompatLevel, Compatible as _, Ruleset, RulesetAttr as _,
    Scope,
};
use rustix::process::{Resource, getrlimit};

use super::queues::Card;
use crate::config::tuning::{self, InForce};
use crate::net::tls::kernel::Keys;
use crate::runtime::affinity::{self, Cpus, Wanted};
use crate::runtime::engine::caps::{self, EngineChoice, EngineKind, Selection};
use crate::runtime::kernel_tls::{NoKernelTls, try_kernel_tls};

/// The facts that [`super::findings`] judges.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    /// Whether root asks: a server that root starts raises its limits itself.
    pub(super) is_root: bool,
    /// Whether systemd runs the machine.
    pub(super) has_systemd: bool,
    /// Release of the kernel: `6.1.0-18-amd64`.
    pub(super) kernel: String,
    /// The engine that `auto` takes, and why.
    pub(super) engine: (EngineKind, String),
    /// Whether files can be opened beneath a directory.
    pub(super) openat2: Result<(), String>,
    /// CPUs that this process may use, at least 1.
    pub(super) cpus: usize,
    /// CPUs' worth of time that the control group allows.
    pub(super) cpu_quota: Option<f64>,
    /// Soft and hard limit of open descriptors; `None` is no limit.
    pub(super) nofile: (Option<u64>, Option<u64>),
    /// Soft and hard limit of locked memory in bytes; `None` is no limit.
    pub(super) memlock: (Option<u64>, Option<u64>),
    /// Settings of the kernel, `None` where it has or shows none.
    pub(super) sysctls: Sysctls,
    /// The newest version of Landlock of which all works, up to the newest that is asked for.
    pub(super) landlock: Option<u8>,
    /// Whether seccomp can tell of refused calls; `None` without seccomp.
    pub(super) seccomp_notifies: Option<bool>,
    /// Whether a ring can be restricted; `None` without io_uring.
    pub(super) ring_restrictions: Option<Result<(), String>>,
    /// Which records of TLS the kernel makes (a bit for each kind), or why none.
    pub(super) kernel_tls: Result<u8, NoKernelTls>,
    /// Whether the kernel's module of TLS lies there to be loaded.
    pub(super) has_tls_module: bool,
    /// Whether the machine has a user `beltway`.
    pub(super) has_user: bool,
    /// The CPUs, and which of them a server takes that is told nothing else.
    pub(super) places: (Cpus, BTreeSet<usize>),
    /// The network cards.
    pub(super) cards: Vec<Card>,
    /// The numbers that `beltway tune` has measured, if it has.
    pub(super) tuning: InForce,
}

/// Settings of the kernel (sysctl(8)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sysctls {
    /// `net.core.somaxconn`.
    pub(super) somaxconn: Option<u64>,
    /// `net.ipv4.tcp_max_syn_backlog`.
    pub(super) syn_backlog: Option<u64>,
    /// `net.ipv4.tcp_syncookies`.
    pub(super) syncookies: Option<u64>,
    /// `net.ipv4.ip_unprivileged_port_start`.
    pub(super) unprivileged_port: Option<u64>,
    /// `net.ipv4.ip_local_port_range`, which IPv6 has in common: the first and the last port.
    pub(super) local_ports: Option<(u64, u64)>,
    /// `fs.nr_open`: the most that a limit of descriptors can be.
    pub(super) nr_open: Option<u64>,
    /// `kernel.io_uring_disabled`; absent before Linux 6.6.
    pub(super) io_uring_disabled: Option<u64>,
}

impl Facts {
    /// Asks the machine.
    pub(super) fn gather() -> Self {
        // `auto` can't fail.
        let engine = match Selection::choose(EngineChoice::Auto) {
            Ok(selection) => (selection.kind(), selection.reason),
            Err(why) => (EngineKind::Epoll, why),
        };
        let ring = engine.0 == EngineKind::Uring;
        let cpus = Cpus::of_this_machine();
        // Without pollers there is a plan for any machine.
        let plan = affinity::plan(Wanted::default(), &cpus);
        let cores = plan.into_iter().flat_map(|plan| plan.cores).flatten();
        let places = (cpus, cores.map(|cpu| cpu.0).collect());
        let limit = |resource| {
            let limit = getrlimit(resource);
            (limit.current, limit.maximum)
        };
        Self {
            is_root: rustix::process::geteuid().is_root(),
            has_systemd: sd_notify::booted().unwrap_or(false),
            kernel: rustix::system::uname()
                .release()
                .to_string_lossy()
                .into_owned(),
            engine,
            openat2: caps::check_openat2(),
            cpus: places.0.allowed.len().max(1),
            cpu_quota: places.0.quota,
            places,
            cards: Card::read_all(Path::new("/")),
            tuning: tuning::in_force(),
            nofile: limit(Resource::Nofile),
            memlock: limit(Resource::Memlock),
            sysctls: Sysctls::read(Path::new("/proc/sys")),
            landlock: landlock_version(),
            seccomp_notifies: fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail")
                .ok()
                .map(|actions| {
                    actions
                        .split_whitespace()
                        .any(|action| action == "user_notif")
                }),
            ring_restrictions: ring.then(try_ring_restrictions),
            kernel_tls: try_kernel_tls(Keys::samples().iter().map(Keys::bytes)),
            has_tls_module: has_tls_module(Path::new("/lib/modules")),
            has_user: fs::read_to_string("/etc/passwd").is_ok_and(|users| has_user(&users)),
        }
    }
}

impl Sysctls {
    fn read(root: &Path) -> Self {
        let text = |name: &str| fs::read_to_string(root.join(name.replace('.', "/"))).ok();
        let number = |name: &str| text(name)?.trim().parse().ok();
        let range = |name: &str| {
            let text = text(name)?;
            let (first, last) = text.trim().split_once(char::is_whitespace)?;
            Some((first.parse().ok()?, last.trim().parse().ok()?))
        };
        Self {
            somaxconn: number("net.core.somaxconn"),
            syn_backlog: number("net.ipv4.tcp_max_syn_backlog"),
            syncookies: number("net.ipv4.tcp_syncookies"),
            unprivileged_port: number("net.ipv4.ip_unprivileged_port_start"),
            local_ports: range("net.ipv4.ip_local_port_range"),
            nr_open: number("fs.nr_open"),
            io_uring_disabled: number("kernel.io_uring_disabled"),
        }
    }
}

/// Makes a rule set with everything that a version has; one that is never enforced restricts nobody.
fn landlock_version() -> Option<u8> {
    let works = |abi: ABI| {
        let mut rules = Ruleset::default()
            .set_compatibility(CompatLevel::HardRequirement)
            .handle_access(AccessFs::from_all(abi))?;
        if !AccessNet::from_all(abi).is_empty() {
            rules = rules.handle_access(AccessNet::from_all(abi))?;
        }
        if !Scope::from_all(abi).is_empty() {
            rules = rules.scope(Scope::from_all(abi))?;
        }
        rules.create()
    };
    let versions = [
        (6, ABI::V6),
        (5, ABI::V5),
        (4, ABI::V4),
        (3, ABI::V3),
        (2, ABI::V2),
        (1, ABI::V1),
    ];
    let newest = versions.into_iter().find(|(_, abi)| works(*abi).is_ok());
    newest.map(|(version, _)| version)
}

/// Restricts a ring of its own to nothing and enables it.
fn try_ring_restrictions() -> Result<(), String> {
    let ring: io_uring::IoUring = io_uring::IoUring::builder()
        .setup_r_disabled()
        .build(2)
        .map_err(|error| error.to_string())?;
    let submitter = ring.submitter();
    let nop = io_uring::register::Restriction::sqe_op(io_uring::opcode::Nop::CODE);
    submitter
        .register_restrictions(&mut [nop])
        .and_then(|()| submitter.register_enable_rings())
        .map_err(|error| error.to_string())
}

/// Whether the running kernel has a module of TLS: modules.dep(5) lists all that there are.
fn has_tls_module(modules: &Path) -> bool {
    let release = rustix::system::uname();
    let list = modules
        .join(release.release().to_string_lossy().as_ref())
        .join("modules.dep");
    fs::read_to_string(list).is_ok_and(|list| lists_tls(&list))
}

fn lists_tls(list: &str) -> bool {
    list.lines()
        .filter_map(|line| line.split_once(':'))
        .any(|(module, _)| module.contains("/net/tls/tls.ko"))
}

/// Whether passwd(5) has the user `beltway`.
fn has_user(users: &str) -> bool {
    users.lines().any(|line| line.starts_with("beltway:"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_answers() {
        let facts = Facts::gather();
        assert!(facts.kernel.contains('.'), "{}", facts.kernel);
        assert!(!facts.engine.1.is_empty());
        assert!(facts.nofile.0.is_none_or(|soft| soft > 0));
        let ring = facts.engine.0 == EngineKind::Uring;
        assert_eq!(facts.ring_restrictions.is_some(), ring);
    }

    #[test]
    fn settings_are_read_and_may_be_missing() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir_all(directory.path().join("net/core")).unwrap();
        fs::write(directory.path().join("net/core/somaxconn"), "4096\n").unwrap();
        fs::create_dir_all(directory.path().join("net/ipv4")).unwrap();
        let range = directory.path().join("net/ipv4/ip_local_port_range");
        fs::write(range, "32768\t60999\n").unwrap();
        let read = Sysctls::read(directory.path());
        let expected = Sysctls {
            somaxconn: Some(4096),
            local_ports: Some((32_768, 60_999)),
            ..Sysctls::default()
        };
        assert_eq!(read, expected);
    }

    #[test]
    fn the_module_is_found_compressed_or_not() {
        assert!(lists_tls(
            "kernel/net/a.ko:\nkernel/net/tls/tls.ko.xz: kernel/net/a.ko\n"
        ));
        assert!(!lists_tls("kernel/drivers/tls.ko: kernel/net/tls/tls.ko\n"));
        assert!(!has_tls_module(Path::new("/nonexistent")));
    }

    #[test]
    fn a_user_is_a_whole_name() {
        assert!(has_user(
            "root:x:0:0::/:/bin/sh\nbeltway:x:990:990::/:/bin/false\n"
        ));
        assert!(!has_user("beltway2:x:1:1::/:\nbelt:x:2:2:beltway::\n"));
    }
}
