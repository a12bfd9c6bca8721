//! Judges what a configuration with backends asks of the machine. Pure.

use std::net::IpAddr;

use super::facts::Facts;
use super::findings::{Finding, Level};
use crate::config::model::{Model, ServerAddr, Upstream, UpstreamServer, Workers};

/// How many ports the kernel gives out by default: 32768 to 60999.
const PORTS_USUAL: u64 = 28_232;

/// The range to ask for where more are needed. What listens on fixed ports is mostly below it.
const PORTS_WANTED: &str = "16384 65535";

/// Findings about backends; none for a configuration without any. `is_foreign` says of an address whether
/// it is none of this host's.
pub(super) fn judge(
    model: &Model,
    facts: &Facts,
    is_foreign: impl Fn(IpAddr) -> bool,
) -> Vec<Finding> {
    if model.upstreams.is_empty() {
        return Vec::new();
    }
    let mut findings = vec![descriptors(model, facts)];
    findings.extend(ports(model, facts));
    findings.extend(sources(model, is_foreign));
    findings
}

/// An address to connect from has to be one of this host's.
fn sources(model: &Model, is_foreign: impl Fn(IpAddr) -> bool) -> Vec<Finding> {
    const NAME: &str = "upstream_source";
    let mut findings = Vec::new();
    for upstream in &model.upstreams {
        for source in upstream.source.addresses() {
            let name = &upstream.name;
            let text = format!("connections to the backends of {name} come from {source}");
            let length = if source.is_ipv4() { 32 } else { 128 };
            findings.push(if is_foreign(source) {
                Finding {
                    name: NAME,
                    level: Level::Warn,
                    text: format!(
                        "{text}, which is no address of this host now: requests are answered 502"
                    ),
                    mend: vec![
                        format!("sudo ip address add {source}/{length} dev INTERFACE"),
                        format!("or another source in [upstream.{name}]"),
                    ],
                }
            } else {
                Finding {
                    name: NAME,
                    level: Level::Ok,
                    text,
                    mend: Vec::new(),
                }
            });
        }
    }
    findings
}

/// Idle connections to backends are kept beside those of clients, by every core.
fn descriptors(model: &Model, facts: &Facts) -> Finding {
    const NAME: &str = "upstream_nofile";
    let cores = match model.server.workers {
        Workers::Auto => facts.cpus,
        Workers::Count(count) => count.get(),
    };
    let per_core: u64 = model.upstreams.iter().map(|upstream| idle(upstream)).sum();
    let idle = per_core.saturating_mul(cores as u64);
    let text = format!(
        "up to {idle} idle connections to backends are kept ({per_core} by each of {cores} threads), and \
         a request that is passed on takes two descriptors"
    );
    match facts.nofile.1 {
        // The clients' own connections and those in use need the other half.
        Some(most) if idle > most / 2 => Finding {
            name: NAME,
            level: Level::Warn,
            text: format!("{text}: with {most} descriptors, too few are left for clients"),
            mend: vec![
                "keepalive = { idle = 8, total = 64 }  (in the [upstream.NAME] of the file)"
                    .to_owned(),
                format!(
                    "LimitNOFILE={}  (in the unit's [Service])",
                    idle.saturating_mul(4)
                ),
            ],
        },
        _ => Finding {
            name: NAME,
            level: Level::Ok,
            text,
            mend: Vec::new(),
        },
    }
}

/// Most idle connections that one core keeps for an upstream. A name may have several addresses, so
/// for those the total alone is sure.
fn idle(upstream: &Upstream) -> u64 {
    let keepalive = upstream.keepalive;
    let has_names = upstream.servers.iter().any(|server| {
        matches!(
            server.address,
            ServerAddr::Name(..) | ServerAddr::Service(_)
        )
    });
    let by_server = if has_names {
        usize::MAX
    } else {
        keepalive.idle.saturating_mul(upstream.servers.len())
    };
    keepalive.total.min(by_server) as u64
}

/// A connection over TCP takes a local port, of which one server sees each only once at a time.
fn ports(model: &Model, facts: &Facts) -> Option<Finding> {
    const NAME: &str = "upstream_ports";
    let over_tcp = |server: &&UpstreamServer| !matches!(server.address, ServerAddr::Unix(_));
    let servers = || {
        model
            .upstreams
            .iter()
            .flat_map(|it| &it.servers)
            .filter(over_tcp)
    };
    servers().next()?;
    // A container may not show it.
    let (first, last) = facts.sysctls.local_ports?;
    let ports = last.saturating_sub(first).saturating_add(1);
    let processes = model.server.processes.get() as u64;
    // Without a limit nobody knows what a server will be asked for; the usual range is then enough.
    let wanted = servers()
        .map(|server| match server.max_conns {
            Some(max) => u64::from(max.get()).saturating_mul(processes),
            None => PORTS_USUAL,
        })
        .max()?;
    let text = format!("at most {ports} connections to one server (local ports {first} to {last})");
    if ports >= wanted {
        return Some(Finding {
            name: NAME,
            level: Level::Ok,
            text,
            mend: Vec::new(),
        });
    }
    Some(Finding {
        name: NAME,
        level: Level::Warn,
        text: format!(
            "{text}, and a server may be asked for {wanted}: what is more is answered 502"
        ),
        mend: vec![
            format!("sudo sysctl -w net.ipv4.ip_local_port_range=\"{PORTS_WANTED}\""),
            format!(
                "echo 'net.ipv4.ip_local_port_range = {PORTS_WANTED}' | sudo tee \
                 /etc/sysctl.d/60-beltway-upstream_ports.conf"
            ),
            "or a unix socket, or several addresses for the server".to_owned(),
        ],
    })
}

#[cfg(test)]
mod tests {
    use super::super::findings::tests::good;
    use super::*;
    use crate::config;
    use crate::config::sources::Input;

    /// Level and text of what is found about a configuration on the good machine after a change.
    fn found(text: &str, change: impl FnOnce(&mut Facts)) -> Vec<Finding> {
        let mut facts = good();
        change(&mut facts);
        let input = Input {
            file: Some("beltway.toml".into()),
            content: Some(text.to_owned()),
            directory: "/srv".into(),
            ..Input::default()
        };
        match config::load(&input) {
            Ok(loaded) => judge(&loaded.model, &facts, |address| {
                address.to_string() == "192.0.2.1"
            }),
            Err(diagnostics) => panic!("{}", diagnostics.render(false)),
        }
    }

    fn levels(findings: &[Finding]) -> Vec<(&'static str, Level)> {
        findings.iter().map(|it| (it.name, it.level)).collect()
    }

    #[test]
    fn without_backends_nothing_is_asked_of_the_machine() {
        let findings = found("[site.\":1\"]\nrespond = 200\n", |_| {});
        assert_eq!(findings, []);
    }

    #[test]
    fn a_usual_machine_is_enough_for_usual_backends() {
        let findings = found(
            "[site.\":1\"]\nproxy = [\"10.0.0.1:1\", \"10.0.0.2:1\"]\n",
            |_| {},
        );
        let expected = [
            ("upstream_nofile", Level::Ok),
            ("upstream_ports", Level::Ok),
        ];
        assert_eq!(levels(&findings), expected);
        // Two servers, 512 each, four cores.
        assert!(findings[0].text.contains("4096 idle"), "{findings:?}");
    }

    #[test]
    fn idle_connections_leave_descriptors_for_clients() {
        let text = "[server]\nworkers = 8\n[upstream.a]\nservers = [\"a.internal:1\"]\n\
                    [site.\":1\"]\nproxy = \"a\"\n";
        let few = |facts: &mut Facts| facts.nofile = (Some(1024), Some(16383));
        let findings = found(text, few);
        assert_eq!(findings[0].level, Level::Warn, "{findings:?}");
        assert!(findings[0].text.contains("8192 idle"), "{findings:?}");
        assert!(findings[0].mend[1].starts_with("LimitNOFILE=32768"));
        let enough = |facts: &mut Facts| facts.nofile = (Some(1024), Some(16384));
        assert_eq!(found(text, enough)[0].level, Level::Ok);
    }

    #[test]
    fn too_few_ports_for_a_server_are_told_with_the_command() {
        let text = "[site.\":1\"]\nproxy = [{ address = \"10.0.0.1:1\", max_conns = 30000 }]\n";
        let findings = found(text, |_| {});
        assert_eq!(findings[1].level, Level::Warn, "{findings:?}");
        assert!(findings[1].text.contains("30000"), "{findings:?}");
        assert!(findings[1].mend[0].contains("ip_local_port_range=\"16384 65535\""));
        let narrow = |facts: &mut Facts| facts.sysctls.local_ports = Some((50_000, 50_099));
        let little = text.replace("30000", "100");
        assert_eq!(found(&little, narrow)[1].level, Level::Ok);
        let unix = "[site.\":1\"]\nproxy = \"unix:/run/app.sock\"\n";
        let narrow = |facts: &mut Facts| facts.sysctls.local_ports = Some((1, 2));
        assert_eq!(
            levels(&found(unix, narrow)),
            [("upstream_nofile", Level::Ok)]
        );
    }

    #[test]
    fn an_address_to_connect_from_that_is_not_there_is_told_with_the_command() {
        let text = "[upstream.a]\nservers = [\"10.0.0.1:1\"]\nsource = [\"192.0.2.1\", \"::1\"]\n\
                    [site.\":1\"]\nproxy = \"a\"\n";
        let findings = found(text, |_| {});
        let expected = [
            ("upstream_source", Level::Warn),
            ("upstream_source", Level::Ok),
        ];
        assert_eq!(levels(&findings)[2..], expected, "{findings:?}");
        assert_eq!(
            findings[2].mend[0],
            "sudo ip address add 192.0.2.1/32 dev INTERFACE"
        );
    }
}
