//! Judges the facts: what is well, what to look at, what is bad, and the exact command that mends it.
//! Pure.

use serde::Serialize;

use super::super::control::error_of;
use super::facts::{Facts, Sysctls};
use super::queues;
use crate::config::tuning::InForce;
use crate::net::tls::kernel;
use crate::runtime::engine::caps::EngineKind;
use crate::runtime::kernel_tls::NoKernelTls;
use crate::supervisor::connections_for;
use crate::supervisor::control::protocol::Reply;

/// Descriptors for a server with many clients: the hard limit that systemd sets by default.
const NOFILE_WANTED: u64 = 524_288;

/// Fewer connections than this are worth a word.
const CONNECTIONS_FEW: usize = 1000;

/// The kernel's own default since Linux 5.4; containers and old configurations have 128.
const SOMAXCONN_WANTED: u64 = 4096;

/// The kernel's own default on a machine with 4 GiB of memory or more.
const SYN_BACKLOG_WANTED: u64 = 1024;

/// The ports that only root may listen on, as the kernel has it by default: those below this.
const UNPRIVILEGED_PORT: u64 = 1024;

/// The version of Landlock that has all that the worker is kept from by files: devices are in 5, other
/// processes' signals and abstract sockets in 6.
const LANDLOCK_WANTED: u8 = 6;

/// How a fact is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Level {
    /// As it should be.
    Ok,
    /// It works, and could be better.
    Warn,
    /// Something doesn't work.
    Bad,
}

impl Level {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Bad => "bad",
        }
    }
}

/// What was found about one thing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    /// Short name, stable for programs.
    pub(super) name: &'static str,
    /// How it is judged.
    pub(super) level: Level,
    /// What it is, and what it means.
    pub(super) text: String,
    /// Commands or lines of a unit that mend it.
    pub(super) mend: Vec<String>,
}

fn ok(name: &'static str, text: impl Into<String>) -> Finding {
    finding(Level::Ok, name, text, &[])
}

fn finding(level: Level, name: &'static str, text: impl Into<String>, mend: &[&str]) -> Finding {
    Finding {
        name,
        level,
        text: text.into(),
        mend: mend.iter().map(|line| (*line).to_owned()).collect(),
    }
}

/// Everything that the facts say, in the order to read it.
pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings = vec![
        kernel(facts),
        engine(facts),
        openat2(facts),
        cpus(facts),
        nofile(facts),
        memlock(facts),
    ];
    findings.extend(sysctls(facts.sysctls, facts.is_root));
    findings.extend([
        landlock(facts.landlock),
        seccomp(facts.seccomp_notifies),
        rings(facts.ring_restrictions.as_ref()),
        kernel_tls(facts),
        user(facts),
        tuning(&facts.tuning),
    ]);
    findings.extend(queues::judge(
        &facts.cards,
        &facts.places.1,
        &facts.places.0,
    ));
    findings
}

/// Whether the kernel encrypts. Without, we do, so it is nothing to be warned of.
fn kernel_tls(facts: &Facts) -> Finding {
    const LOAD: &str = "sudo modprobe tls";
    const KEEP: &str = "echo tls | sudo tee /etc/modules-load.d/tls.conf";
    let ours = "large contents under TLS are encrypted by the server, which copies them";
    match &facts.kernel_tls {
        Ok(kinds) => ok(
            "ktls",
            format!(
                "the kernel encrypts large contents under TLS: {}",
                kernel::names(*kinds).join(", ")
            ),
        ),
        Err(NoKernelTls::NoModule) if facts.has_tls_module => finding(
            Level::Ok,
            "ktls",
            format!("{ours}: the kernel's module `tls` isn't loaded"),
            &[LOAD, KEEP],
        ),
        Err(NoKernelTls::NoModule) => ok(
            "ktls",
            format!("{ours}: this kernel has no TLS (CONFIG_TLS), or shows no module of it"),
        ),
        Err(why) => ok("ktls", format!("{ours}: {why}")),
    }
}

/// Which numbers a start works with.
fn tuning(tuning: &InForce) -> Finding {
    if let Some(refused) = tuning.refused.first() {
        return finding(Level::Warn, "tuning", refused, &["beltway tune"]);
    }
    match &tuning.file {
        Some(file) => ok("tuning", format!("numbers of {}", file.display())),
        None => ok(
            "tuning",
            "numbers that hold everywhere; `beltway tune` measures those of this machine",
        ),
    }
}

/// What the server that was asked for said, or why it said nothing.
pub(super) fn server(status: Result<&Reply, &str>) -> Finding {
    match status {
        Ok(reply) if reply.exit == 0 => {
            let data = &reply.data;
            let pid = data["pid"].as_u64().unwrap_or_default();
            let version = data["version"].as_str().unwrap_or("?");
            let own = env!("CARGO_PKG_VERSION");
            if version == own {
                return ok("server", format!("process {pid} runs, version {version}"));
            }
            let text = format!("process {pid} runs version {version}, this program is {own}");
            finding(Level::Warn, "server", text, &["beltway upgrade"])
        }
        Ok(reply) => finding(Level::Bad, "server", error_of(&reply.text), &[]),
        Err(text) => finding(Level::Warn, "server", error_of(text), &[]),
    }
}

fn kernel(facts: &Facts) -> Finding {
    ok("kernel", format!("Linux {}", facts.kernel))
}

fn engine(facts: &Facts) -> Finding {
    let (kind, reason) = &facts.engine;
    if *kind == EngineKind::Uring {
        return ok("engine", format!("io_uring: {reason}"));
    }
    let text = format!("epoll, which serves as well and costs some more: {reason}");
    let in_group = "or let one group: sudo sysctl -w kernel.io_uring_group=$(id -g beltway)";
    let seccomp = "docker run --security-opt seccomp=PROFILE.json … with io_uring_setup, \
                   io_uring_enter and io_uring_register allowed";
    let mend: &[&str] = match facts.sysctls.io_uring_disabled {
        Some(2) => &["sudo sysctl -w kernel.io_uring_disabled=0"],
        // 1 forbids it to those without CAP_SYS_ADMIN, which the worker never has.
        Some(1) => &["sudo sysctl -w kernel.io_uring_disabled=0", in_group],
        _ if reason.contains("seccomp") => &[seccomp],
        _ if reason.contains("MEMLOCK") => &["LimitMEMLOCK=infinity  (in the unit's [Service])"],
        _ => &[],
    };
    finding(Level::Warn, "engine", text, mend)
}

fn openat2(facts: &Facts) -> Finding {
    match &facts.openat2 {
        Ok(()) => ok(
            "openat2",
            "files are opened beneath their directory by the kernel",
        ),
        Err(why) => {
            let text = format!("no file can be served: {why}");
            let mend =
                "use Linux 5.6 or later; in a container, allow openat2 in its seccomp profile";
            finding(Level::Bad, "openat2", text, &[mend])
        }
    }
}

fn cpus(facts: &Facts) -> Finding {
    let cpus = plural(facts.cpus, "CPU");
    match facts.cpu_quota {
        Some(quota) if quota < facts.cpus as f64 => {
            let text = format!(
                "{cpus}, of which the control group allows the time of {quota:.2}: so many cores are \
                 started, rounded up, and they aren't pinned"
            );
            let level = if quota < 1.0 { Level::Warn } else { Level::Ok };
            let mend: &[&str] = match level {
                // Below one CPU every request waits for the rest of a period again and again.
                Level::Warn => {
                    &["CPUQuota=100%  (in the unit's [Service]), or docker run --cpus=1"]
                }
                _ => &[],
            };
            finding(level, "cpu", text, mend)
        }
        _ => ok("cpu", format!("{cpus}, no quota below that")),
    }
}

fn nofile(facts: &Facts) -> Finding {
    let (soft, hard) = facts.nofile;
    let connections = connections_for(hard, facts.cpus);
    let text = format!(
        "{} descriptors, raised to {} at the start: {}",
        limit(soft),
        limit(hard),
        plural(connections, "connection")
    );
    if connections >= CONNECTIONS_FEW {
        return ok("nofile", text);
    }
    let most = facts.sysctls.nr_open.unwrap_or(NOFILE_WANTED);
    let most = most.min(NOFILE_WANTED);
    let unit = format!("LimitNOFILE={most}  (in the unit's [Service])");
    let shell = format!("sudo prlimit --nofile={most} --pid $$  (for this shell)");
    if facts.has_systemd {
        finding(Level::Warn, "nofile", text, &[&unit, &shell])
    } else {
        finding(Level::Warn, "nofile", text, &[&shell])
    }
}

fn memlock(facts: &Facts) -> Finding {
    let (soft, hard) = facts.memlock;
    let text = format!("{} of locked memory, at most {}", kib(soft), kib(hard));
    if !facts.engine.1.contains("MEMLOCK") {
        return ok("memlock", format!("{text}: enough for this kernel's rings"));
    }
    let mend = [
        "LimitMEMLOCK=infinity  (in the unit's [Service])",
        "sudo prlimit --memlock=unlimited --pid $$  (for this shell)",
    ];
    finding(
        Level::Bad,
        "memlock",
        format!("{text}: no ring fits"),
        &mend,
    )
}

fn sysctls(sysctls: Sysctls, is_root: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    // A container may not show them; what can't be seen can't be judged.
    if let Some(most) = sysctls.somaxconn {
        let text = format!("at most {most} connections wait to be accepted on a listener");
        findings.push(at_least(
            "somaxconn",
            most,
            SOMAXCONN_WANTED,
            &text,
            "a burst of more is dropped, and tried again by its clients a second later",
            "net.core.somaxconn",
        ));
    }
    if let Some(most) = sysctls.syn_backlog {
        let text = format!("at most {most} handshakes are under way on a listener");
        findings.push(at_least(
            "syn_backlog",
            most,
            SYN_BACKLOG_WANTED,
            &text,
            "clients far away are dropped in a burst",
            "net.ipv4.tcp_max_syn_backlog",
        ));
    }
    match sysctls.syncookies {
        Some(0) => findings.push(finding(
            Level::Warn,
            "syncookies",
            "off: a flood of forged SYN segments keeps clients out",
            &["sudo sysctl -w net.ipv4.tcp_syncookies=1"],
        )),
        Some(_) => findings.push(ok(
            "syncookies",
            "a flood of forged SYN segments is survived",
        )),
        None => {}
    }
    match sysctls.unprivileged_port {
        Some(first) if !is_root && first > 80 => findings.push(ports(first)),
        _ => {}
    }
    findings
}

fn ports(first: u64) -> Finding {
    let text = format!(
        "this user may not listen on ports below {first}; as a service it is started by root or \
         with CAP_NET_BIND_SERVICE"
    );
    let mend = [
        "sudo setcap cap_net_bind_service=+ep \"$(command -v beltway)\"",
        "sudo sysctl -w net.ipv4.ip_unprivileged_port_start=80",
    ];
    // The usual case of everybody who isn't root is nothing to worry about.
    let level = if first > UNPRIVILEGED_PORT {
        Level::Warn
    } else {
        Level::Ok
    };
    finding(level, "ports", text, &mend)
}

fn at_least(
    name: &'static str,
    value: u64,
    wanted: u64,
    text: &str,
    otherwise: &str,
    sysctl: &str,
) -> Finding {
    if value >= wanted {
        return ok(name, text);
    }
    let now = format!("sudo sysctl -w {sysctl}={wanted}");
    let ever =
        format!("echo '{sysctl} = {wanted}' | sudo tee /etc/sysctl.d/60-beltway-{name}.conf");
    finding(
        Level::Warn,
        name,
        format!("{text}: {otherwise}"),
        &[&now, &ever],
    )
}

fn landlock(version: Option<u8>) -> Finding {
    match version {
        Some(version) if version >= LANDLOCK_WANTED => ok(
            "landlock",
            format!("version {version} or later: the worker sees only the files that it serves"),
        ),
        Some(version) => finding(
            Level::Warn,
            "landlock",
            format!(
                "version {version}: the worker sees only the files that it serves, and {}",
                match version {
                    1 | 2 => "files that it may open could be cut short (Linux 6.2 mends that)",
                    3 | 4 => "devices that it holds take any request (Linux 6.10 mends that)",
                    _ => "it can signal its user's other processes (Linux 6.12 mends that)",
                }
            ),
            &[],
        ),
        None => finding(
            Level::Warn,
            "landlock",
            "this kernel has none, or it is switched off: only the rights of its user keep the worker \
             from other files",
            &[
                "add landlock to the list after lsm= on the kernel's command line (cat \
                 /sys/kernel/security/lsm shows it), for Linux 5.13 or later",
            ],
        ),
    }
}

fn seccomp(notifies: Option<bool>) -> Finding {
    match notifies {
        Some(true) => ok(
            "seccomp",
            "calls that the worker never needs are refused and counted",
        ),
        Some(false) => finding(
            Level::Warn,
            "seccomp",
            "calls that the worker never needs are refused, but not counted: that needs Linux 5.5",
            &[],
        ),
        None => finding(
            Level::Warn,
            "seccomp",
            "this kernel has none: the worker could start programs and open sockets of any kind",
            &["use a kernel with CONFIG_SECCOMP_FILTER=y"],
        ),
    }
}

fn rings(restrictions: Option<&Result<(), String>>) -> Finding {
    match restrictions {
        Some(Ok(())) => ok(
            "rings",
            "each ring is restricted to what the server does with it",
        ),
        Some(Err(why)) => finding(
            Level::Warn,
            "rings",
            format!("a ring can't be restricted, so it can do all that io_uring can: {why}"),
            &["beltway run --engine=epoll  (where that matters more than speed)"],
        ),
        None => ok("rings", "none: the engine is epoll"),
    }
}

fn user(facts: &Facts) -> Finding {
    if facts.has_user {
        return ok(
            "user",
            "the worker of a server that root starts runs as beltway",
        );
    }
    finding(
        Level::Warn,
        "user",
        "there is no user beltway: the worker of a server that root starts runs as nobody, as other \
         services may",
        &["sudo useradd --system --no-create-home --shell /usr/sbin/nologin beltway"],
    )
}

fn limit(limit: Option<u64>) -> String {
    limit.map_or_else(|| "unlimited".to_owned(), |limit| limit.to_string())
}

fn kib(bytes: Option<u64>) -> String {
    bytes.map_or_else(
        || "any amount".to_owned(),
        |bytes| format!("{} KiB", bytes >> 10),
    )
}

fn plural(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A machine that has everything.
    pub(in super::super) fn good() -> Facts {
        Facts {
            is_root: true,
            has_systemd: true,
            kernel: "6.12.0".into(),
            engine: (EngineKind::Uring, "all works".into()),
            openat2: Ok(()),
            cpus: 4,
            cpu_quota: None,
            nofile: (Some(1024), Some(524_288)),
            memlock: (Some(8 << 20), Some(8 << 20)),
            sysctls: Sysctls {
                somaxconn: Some(4096),
                syn_backlog: Some(4096),
                syncookies: Some(1),
                unprivileged_port: Some(1024),
                local_ports: Some((32_768, 60_999)),
                nr_open: Some(1 << 30),
                io_uring_disabled: Some(0),
            },
            landlock: Some(6),
            seccomp_notifies: Some(true),
            ring_restrictions: Some(Ok(())),
            kernel_tls: Ok(0b01_1011),
            has_tls_module: true,
            has_user: true,
            places: Default::default(),
            cards: Vec::new(),
            tuning: InForce::default(),
        }
    }

    #[test]
    fn a_good_machine_has_nothing_to_mend() {
        for finding in judge(&good()) {
            assert_eq!(
                (finding.level, &*finding.mend),
                (Level::Ok, &[][..]),
                "{finding:?}"
            );
        }
    }

    /// The finding of this name on the good machine after a change.
    fn found(name: &str, change: impl FnOnce(&mut Facts)) -> Finding {
        let mut facts = good();
        change(&mut facts);
        let mut findings = judge(&facts);
        let others = findings
            .iter()
            .filter(|it| it.level != Level::Ok && it.name != name);
        assert_eq!(others.count(), 0, "only {name} may be affected");
        let at = findings
            .iter()
            .position(|it| it.name == name)
            .expect("it is judged");
        findings.remove(at)
    }

    fn is(finding: &Finding, level: Level, mend: &str) {
        assert_eq!(finding.level, level, "{finding:?}");
        let mends = finding.mend.iter().any(|line| line.contains(mend));
        assert!(
            mends || finding.mend.is_empty() && mend.is_empty(),
            "{finding:?}"
        );
    }

    #[test]
    fn a_missing_ring_is_explained_by_its_cause() {
        let without = |reason: &'static str, disabled| {
            found("engine", move |facts| {
                facts.engine = (EngineKind::Epoll, format!("no io_uring: {reason}"));
                facts.ring_restrictions = None;
                facts.sysctls.io_uring_disabled = disabled;
            })
        };
        let finding = without("forbidden by sysctl", Some(2));
        is(
            &finding,
            Level::Warn,
            "sysctl -w kernel.io_uring_disabled=0",
        );
        is(
            &without("forbidden by sysctl", Some(1)),
            Level::Warn,
            "io_uring_group",
        );
        is(
            &without("forbidden (EPERM), seccomp", Some(0)),
            Level::Warn,
            "io_uring_setup",
        );
        is(&without("this kernel has none", None), Level::Warn, "");
    }

    #[test]
    fn too_little_locked_memory_is_bad_where_rings_need_it() {
        let mut facts = good();
        let reason = "no io_uring: not enough locked memory: raise RLIMIT_MEMLOCK";
        facts.engine = (EngineKind::Epoll, reason.into());
        facts.memlock = (Some(65_536), Some(65_536));
        let findings = judge(&facts);
        let memlock = findings.iter().find(|it| it.name == "memlock").unwrap();
        is(memlock, Level::Bad, "LimitMEMLOCK=infinity");
        assert!(memlock.text.contains("64 KiB"), "{memlock:?}");
        // Little, and yet enough.
        is(
            &found("memlock", |facts| {
                facts.memlock = (Some(65_536), Some(65_536))
            }),
            Level::Ok,
            "",
        );
    }

    #[test]
    fn descriptors_are_told_as_connections() {
        let few = found("nofile", |facts| facts.nofile = (Some(1024), Some(1024)));
        is(&few, Level::Warn, "LimitNOFILE=524288");
        assert!(few.text.contains("connections"), "{few:?}");
        is(
            &found("nofile", |facts| facts.nofile = (Some(1024), None)),
            Level::Ok,
            "",
        );
        let limited = found("nofile", |facts| {
            facts.nofile = (Some(1024), Some(1024));
            facts.sysctls.nr_open = Some(100_000);
        });
        is(&limited, Level::Warn, "LimitNOFILE=100000");
    }

    #[test]
    fn settings_that_drop_clients_are_told_with_both_commands() {
        let finding = found("somaxconn", |facts| facts.sysctls.somaxconn = Some(128));
        is(
            &finding,
            Level::Warn,
            "sudo sysctl -w net.core.somaxconn=4096",
        );
        is(
            &finding,
            Level::Warn,
            "/etc/sysctl.d/60-beltway-somaxconn.conf",
        );
        let finding = found("syn_backlog", |facts| facts.sysctls.syn_backlog = Some(128));
        is(&finding, Level::Warn, "tcp_max_syn_backlog=1024");
        let finding = found("syncookies", |facts| facts.sysctls.syncookies = Some(0));
        is(&finding, Level::Warn, "tcp_syncookies=1");
        let mut unseen = good();
        unseen.sysctls = Sysctls::default();
        assert!(judge(&unseen).iter().all(|it| it.name != "somaxconn"));
    }

    #[test]
    fn low_ports_are_about_those_who_are_not_root() {
        let finding = found("ports", |facts| facts.is_root = false);
        is(&finding, Level::Ok, "setcap");
        let mut open = good();
        open.is_root = false;
        open.sysctls.unprivileged_port = Some(0);
        assert!(judge(&open).iter().all(|it| it.name != "ports"));
    }

    #[test]
    fn what_the_sandbox_lacks_is_a_warning() {
        is(
            &found("landlock", |facts| facts.landlock = Some(3)),
            Level::Warn,
            "",
        );
        is(
            &found("landlock", |facts| facts.landlock = None),
            Level::Warn,
            "lsm=",
        );
        is(
            &found("seccomp", |facts| facts.seccomp_notifies = Some(false)),
            Level::Warn,
            "",
        );
        is(
            &found("seccomp", |facts| facts.seccomp_notifies = None),
            Level::Warn,
            "SECCOMP",
        );
        let refused = |facts: &mut Facts| facts.ring_restrictions = Some(Err("EINVAL".into()));
        is(&found("rings", refused), Level::Warn, "--engine=epoll");
        is(
            &found("user", |facts| facts.has_user = false),
            Level::Warn,
            "sudo useradd --system",
        );
    }

    #[test]
    fn without_openat2_nothing_can_be_served() {
        let finding = found("openat2", |facts| facts.openat2 = Err("none".into()));
        is(&finding, Level::Bad, "5.6");
    }

    #[test]
    fn a_quota_is_told_and_a_small_one_warned_of() {
        is(
            &found("cpu", |facts| facts.cpu_quota = Some(2.5)),
            Level::Ok,
            "",
        );
        is(
            &found("cpu", |facts| facts.cpu_quota = Some(0.5)),
            Level::Warn,
            "CPUQuota=100%",
        );
        let text = found("cpu", |facts| facts.cpu_quota = Some(8.0)).text;
        assert!(text.contains("no quota below"), "{text}");
    }

    #[test]
    fn a_running_server_is_told_with_its_version() {
        let status = |version: &str| {
            Reply::done("").with_data(serde_json::json!({"pid": 7, "version": version}))
        };
        let same = server(Ok(&status(env!("CARGO_PKG_VERSION"))));
        is(&same, Level::Ok, "");
        is(
            &server(Ok(&status("0.0.1"))),
            Level::Warn,
            "beltway upgrade",
        );
        let absent = server(Err(
            "error: nothing runs with a.toml: no control socket\n  = help: x\n",
        ));
        is(&absent, Level::Warn, "");
        assert!(absent.text.starts_with("nothing runs"), "{absent:?}");
    }
}
