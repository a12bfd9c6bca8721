//! Flags that stand for keys of the configuration file: one table, from which the command line is
//! made and by which its values become settings.

use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgAction, ArgMatches};

use crate::config::sources::{FlagValue, Setting};

/// The name of the site that `serve` and `proxy` make.
pub(super) const SERVE_SITE: &str = "*";

/// The name of the upstream that `proxy` makes where flags say something about it.
pub(super) const PROXY_UPSTREAM: &str = "app";

/// Id of `--set`.
const SET: &str = "set";

/// Which table a flag's key is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Table {
    /// `[server]`: every command takes it.
    Server,
    /// Where the site listens that `serve` or `proxy` makes, and other keys of both.
    Site,
    /// What only the site has that `serve` makes.
    Files,
    /// What only the site has that `proxy` makes.
    Proxy,
    /// The upstream that `proxy` makes.
    Upstream,
}

/// What a flag takes.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// `--x` and `--no-x`. The one that isn't the default is shown, and the help is about it.
    Switch { default: bool },
    /// `--x=VALUE`, a number or a word.
    Value(&'static str),
    /// `--x=VALUE`, one of these.
    Word(&'static str, &'static [&'static str]),
    /// `--x[=VALUE]` and `--no-x`.
    Optional(&'static str),
    /// `--x=VALUE`, any number of times.
    Many(&'static str),
    /// `--x=FIRST,SECOND`, for these two keys of a table; one value is for both.
    /// Or `--x=WORD`, one of these, for the table's own key.
    Pair(&'static str, [&'static str; 2], &'static [&'static str]),
}

/// A flag and its key.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flag {
    name: &'static str,
    short: Option<char>,
    pub(super) table: Table,
    pub(super) key: &'static str,
    kind: Kind,
    heading: &'static str,
    help: &'static str,
}

const ANSWERS: &str = "What is served";
const BACKENDS: &str = "How backends are asked";
const LISTENING: &str = "Where and how many";
const RIGHTS: &str = "What workers may do";
const LOGS: &str = "Logs";
const OTHER: &str = "Configuration";

const fn flag(
    name: &'static str,
    table: Table,
    key: &'static str,
    kind: Kind,
    heading: &'static str,
    help: &'static str,
) -> Flag {
    Flag {
        name,
        short: None,
        table,
        key,
        kind,
        heading,
        help,
    }
}

/// All flags, in the order in which the help shows them.
pub(super) const FLAGS: &[Flag] = &[
    Flag {
        short: Some('l'),
        ..flag(
            "listen",
            Table::Site,
            "listen",
            Kind::Many("ADDR"),
            LISTENING,
            "Where to listen, such as :8080 (every address, IPv4 and IPv6), 127.0.0.1:8080, \
             [::1]:8080, unix:/run/web.sock or fd:NAME (a socket that systemd hands over); port 0 \
             is any free one; may be given several times [default: 127.0.0.1:8080]",
        )
    },
    flag(
        "tls",
        Table::Site,
        "tls",
        Kind::Pair("CERT,KEY", ["cert", "key"], &["self-signed"]),
        LISTENING,
        "Speak TLS with this certificate and its private key, files in PEM, and one file may hold \
         both; or with self-signed, by the authority of this machine (see `beltway cert trust`)",
    ),
    flag(
        "spa",
        Table::Files,
        "spa",
        Kind::Optional("FILE"),
        ANSWERS,
        "Single-page application: answer missing paths with FILE [index.html], except those \
         whose last part has an extension",
    ),
    flag(
        "list",
        Table::Files,
        "list",
        Kind::Switch { default: true },
        ANSWERS,
        "List directories without an index file [default: on loopback and unix sockets only]",
    ),
    flag(
        "cors",
        Table::Site,
        "cors",
        Kind::Optional("ORIGIN"),
        ANSWERS,
        "Let pages of other origins read the answers: of ORIGIN, or of all",
    ),
    flag(
        "precompressed",
        Table::Files,
        "precompressed",
        Kind::Switch { default: true },
        ANSWERS,
        "Don't send app.js.zst, .br or .gz beside app.js to clients that take them",
    ),
    flag(
        "etag",
        Table::Files,
        "etag",
        Kind::Switch { default: true },
        ANSWERS,
        "Don't send an ETag with files",
    ),
    flag(
        "range",
        Table::Files,
        "range",
        Kind::Switch { default: true },
        ANSWERS,
        "Always send whole files, never parts",
    ),
    flag(
        "hidden-files",
        Table::Files,
        "hidden_files",
        Kind::Switch { default: false },
        ANSWERS,
        "Serve names that begin with a dot; /.well-known/ always is",
    ),
    flag(
        "symlinks",
        Table::Files,
        "symlinks",
        Kind::Word("off|beneath|on", &["off", "beneath", "on"]),
        ANSWERS,
        "Which symbolic links are followed: none, those that stay beneath the directory, or all \
         [default: beneath]",
    ),
    flag(
        "balance",
        Table::Upstream,
        "balance",
        Kind::Word(
            "ALGORITHM",
            &["round-robin", "least-conn", "p2c", "random", "hash"],
        ),
        BACKENDS,
        "How requests are spread: round-robin, least-conn, p2c (the faster of two), random, or hash \
         (by the client's address) [default: round-robin]",
    ),
    flag(
        "health",
        Table::Upstream,
        "health",
        Kind::Value("PATH"),
        BACKENDS,
        "Ask each backend for PATH every 5 seconds, or with tcp for a connection, and leave out \
         those that don't answer well",
    ),
    flag(
        "source",
        Table::Upstream,
        "source",
        Kind::Many("ADDRESS"),
        BACKENDS,
        "Connect to backends from this address of the host, one of each family at most [default: as \
         the route says]",
    ),
    flag(
        "upstream-host",
        Table::Proxy,
        "upstream_host",
        Kind::Value("keep|upstream|HOST"),
        BACKENDS,
        "The field Host that backends see: the client's, their own address, or HOST [default: keep]",
    ),
    flag(
        "timeout",
        Table::Proxy,
        "timeout",
        Kind::Value("TIME"),
        BACKENDS,
        "How long a backend may take to answer, and between two parts of an answer [default: 60s]",
    ),
    flag(
        "proxy-protocol",
        Table::Site,
        "proxy_protocol",
        Kind::Many("NETWORK"),
        LISTENING,
        "Expect a PROXY header on connections from NETWORK, such as 10.0.0.0/8, or from unix; may be \
         given several times",
    ),
    flag(
        "trusted-proxies",
        Table::Server,
        "trusted_proxies",
        Kind::Many("NETWORK"),
        LISTENING,
        "Believe what peers in NETWORK, such as 10.0.0.0/8 or unix, say about the client; may be \
         given several times",
    ),
    flag(
        "workers",
        Table::Server,
        "workers",
        Kind::Value("N"),
        LISTENING,
        "Threads that serve, or auto: one for each CPU [default: auto]",
    ),
    flag(
        "pin",
        Table::Server,
        "pin",
        Kind::Switch { default: false },
        LISTENING,
        "Keep each thread on one CPU; --no-pin: don't [default: where there are CPUs for it]",
    ),
    flag(
        "engine",
        Table::Server,
        "engine",
        Kind::Word("auto|uring|epoll", &["auto", "uring", "epoll"]),
        LISTENING,
        "What performs I/O [default: auto, which is io_uring where the kernel has and allows it]",
    ),
    flag(
        "splice",
        Table::Server,
        "splice",
        Kind::Switch { default: true },
        LISTENING,
        "Copy large proxied bodies, instead of passing them on through pipes",
    ),
    flag(
        "zerocopy",
        Table::Server,
        "zerocopy",
        Kind::Word("auto|on|off", &["auto", "on", "off"]),
        LISTENING,
        "Send what was read past the page cache without a copy [default: auto, which is for large \
         pieces to other machines]",
    ),
    flag(
        "ktls",
        Table::Server,
        "ktls",
        Kind::Word("auto|on|off", &["auto", "on", "off"]),
        LISTENING,
        "Let the kernel encrypt large contents under TLS [default: auto, which is where it can]",
    ),
    flag(
        "sqpoll",
        Table::Server,
        "sqpoll",
        Kind::Switch { default: false },
        LISTENING,
        "Let a thread of the kernel on another CPU submit what io_uring is asked for; takes two CPUs \
         for each thread",
    ),
    flag(
        "reuseport",
        Table::Server,
        "reuseport",
        Kind::Switch { default: false },
        LISTENING,
        "Let each thread accept from a socket of its own, to which the kernel assigns clients",
    ),
    flag(
        "max-conns",
        Table::Server,
        "max_conns",
        Kind::Value("N"),
        LISTENING,
        "Most open connections [default: from the memory and descriptor limits]",
    ),
    flag(
        "drain",
        Table::Server,
        "drain_timeout",
        Kind::Value("TIME"),
        LISTENING,
        "How long running requests may take to end: at a stop, and in workers that others replace \
         [default: 30s]",
    ),
    flag(
        "user",
        Table::Server,
        "user",
        Kind::Value("NAME"),
        RIGHTS,
        "The user that the workers become when root starts a master, a name or a number [default: \
         beltway if there is one, else nobody]",
    ),
    flag(
        "group",
        Table::Server,
        "group",
        Kind::Value("NAME"),
        RIGHTS,
        "The group that the workers become [default: the user's own]",
    ),
    flag(
        "sandbox",
        Table::Server,
        "sandbox",
        Kind::Optional("auto|strict"),
        RIGHTS,
        "Take from the workers what they don't need: what the kernel can enforce, or with strict \
         all of it or no start; --no-sandbox: nothing [default: auto]",
    ),
    flag(
        "access-log",
        Table::Server,
        "access_log",
        Kind::Optional("FILE"),
        LOGS,
        "Append a line for each request to FILE, or to standard output (also as -) [default: no]",
    ),
    flag(
        "log-format",
        Table::Server,
        "log_format",
        Kind::Word("common|combined|json", &["common", "combined", "json"]),
        LOGS,
        "How a line of the access log looks [default: combined]",
    ),
    flag(
        "log-level",
        Table::Server,
        "log_level",
        Kind::Word("error|warn|info|debug", &["error", "warn", "info", "debug"]),
        LOGS,
        "What the server says about itself, on standard error [default: info]",
    ),
];

impl Flag {
    /// The arguments of the flag, and of the flag that switches it off.
    fn args(&self) -> Vec<Arg> {
        let on = Arg::new(self.name)
            .long(self.name)
            .help(self.help)
            .help_heading(self.heading);
        let on = match self.short {
            Some(short) => on.short(short),
            None => on,
        };
        match self.kind {
            Kind::Value(name) | Kind::Pair(name, ..) => vec![on.value_name(name)],
            Kind::Many(name) => vec![on.value_name(name).action(ArgAction::Append)],
            Kind::Word(name, words) => vec![
                on.value_name(name)
                    .value_parser(PossibleValuesParser::new(words))
                    .hide_possible_values(true),
            ],
            Kind::Optional(name) => vec![
                on.value_name(name)
                    .num_args(0..=1)
                    .require_equals(true)
                    .default_missing_value("")
                    .overrides_with(self.off_name()),
                self.off().hide(true),
            ],
            Kind::Switch { default } => vec![
                on.action(ArgAction::SetTrue)
                    .hide(default && self.name != "list")
                    .overrides_with(self.off_name()),
                self.off()
                    .hide(!default)
                    .help(match self.name {
                        "list" => "Never list directories",
                        _ => self.help,
                    })
                    .help_heading(self.heading),
            ],
        }
    }

    /// Id and name of the flag that switches this one off.
    fn off_name(&self) -> &'static str {
        match self.name {
            "spa" => "no-spa",
            "list" => "no-list",
            "cors" => "no-cors",
            "precompressed" => "no-precompressed",
            "etag" => "no-etag",
            "range" => "no-range",
            "hidden-files" => "no-hidden-files",
            "pin" => "no-pin",
            "splice" => "no-splice",
            "sqpoll" => "no-sqpoll",
            "reuseport" => "no-reuseport",
            "access-log" => "no-access-log",
            "sandbox" => "no-sandbox",
            other => other,
        }
    }

    fn off(&self) -> Arg {
        Arg::new(self.off_name())
            .long(self.off_name())
            .action(ArgAction::SetTrue)
            .overrides_with(self.name)
    }

    fn setting(&self, matches: &ArgMatches) -> Option<Setting> {
        let has_off = self.off_name() != self.name;
        if has_off && super::given(matches, self.off_name()) {
            let flag = format!("--{}", self.off_name());
            return Some(self.set(flag, FlagValue::Boolean(false)));
        }
        let flag = format!("--{}=", self.name);
        match self.kind {
            Kind::Switch { .. } => super::given(matches, self.name)
                .then(|| self.set(format!("--{}", self.name), FlagValue::Boolean(true))),
            Kind::Many(_) => {
                let values = texts(matches, self.name);
                if values.is_empty() {
                    return None;
                }
                let flag = self.short.map_or(flag, |short| format!("-{short} "));
                Some(self.set(flag, FlagValue::List(values)))
            }
            Kind::Pair(_, keys, words) => {
                let value = texts(matches, self.name).pop()?;
                if words.contains(&value.as_str()) {
                    return Some(self.set(flag, FlagValue::Text(value)));
                }
                let (first, second) = value.split_once(',').unwrap_or((&value, &value));
                let pair = keys.into_iter().zip([first, second]);
                let pair = pair.map(|(key, value)| (key.to_owned(), value.to_owned()));
                Some(self.set(flag, FlagValue::Table(pair.collect())))
            }
            Kind::Value(_) | Kind::Word(..) => {
                let value = texts(matches, self.name).pop()?;
                Some(self.set(flag, FlagValue::Loose(value)))
            }
            Kind::Optional(_) => {
                let value = texts(matches, self.name).pop()?;
                Some(if value.is_empty() {
                    self.set(format!("--{}", self.name), FlagValue::Boolean(true))
                } else {
                    self.set(flag, FlagValue::Text(value))
                })
            }
        }
    }

    fn set(&self, flag: String, value: FlagValue) -> Setting {
        let path: &[&str] = match self.table {
            Table::Server => &["server", self.key],
            Table::Site | Table::Files | Table::Proxy => &["site", SERVE_SITE, self.key],
            Table::Upstream => &["upstream", PROXY_UPSTREAM, self.key],
        };
        Setting::Flag {
            flag,
            path: path.iter().map(|key| (*key).to_owned()).collect(),
            value,
        }
    }
}

/// The arguments of the flags of these tables, and `--set`.
pub(super) fn args(tables: &[Table]) -> Vec<Arg> {
    FLAGS
        .iter()
        .filter(|flag| tables.contains(&flag.table))
        .flat_map(Flag::args)
        .chain([Arg::new(SET)
            .long(SET)
            .value_name("KEY=VALUE")
            .action(ArgAction::Append)
            .help_heading(OTHER)
            .help(
                "Set any key of the configuration, such as server.limits.request_line=4KiB; \
                 may be given several times",
            )])
        .collect()
}

/// What was given to an argument, in that order; nothing where the command has no such argument.
/// Only the fallible getters of clap say so in every profile: it knows the names of arguments that
/// don't exist only with debug assertions.
pub(super) fn texts(matches: &ArgMatches, name: &str) -> Vec<String> {
    let values = matches.try_get_many::<String>(name).ok().flatten();
    values.into_iter().flatten().cloned().collect()
}

/// The settings that were given: flags first, then `--set`, so that the latter wins. None for
/// `beltway -c FILE`, `-t` and `-T`, which have no flags beside them.
pub(super) fn settings(matches: &ArgMatches, tables: &[Table]) -> Vec<Setting> {
    let flags = FLAGS
        .iter()
        .filter(|flag| tables.contains(&flag.table))
        .filter_map(|flag| flag.setting(matches));
    flags
        .chain(texts(matches, SET).into_iter().map(Setting::Set))
        .collect()
}

/// A setting of the site that `serve` or `proxy` makes, for what isn't a flag.
pub(super) fn site_setting(shown: &str, key: &str, value: FlagValue) -> Setting {
    setting(shown, &["site", SERVE_SITE, key], value)
}

/// A setting of any key, for what isn't a flag.
pub(super) fn setting(shown: &str, path: &[&str], value: FlagValue) -> Setting {
    Setting::Flag {
        flag: shown.into(),
        path: path.iter().map(|key| (*key).to_owned()).collect(),
        value,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::schema::Section;

    #[test]
    fn every_flag_stands_for_a_key() {
        for flag in FLAGS {
            let section = match flag.table {
                Table::Server => Section::Server,
                Table::Site | Table::Files | Table::Proxy => Section::Site,
                Table::Upstream => Section::Upstream,
            };
            assert!(section.key(flag.key).is_some(), "{}", flag.name);
        }
    }

    #[test]
    fn what_has_a_negation_has_its_name() {
        for flag in FLAGS {
            let negated = matches!(flag.kind, Kind::Switch { .. } | Kind::Optional(_));
            let expected = if negated {
                format!("no-{}", flag.name)
            } else {
                flag.name.to_owned()
            };
            assert_eq!(flag.off_name(), expected);
        }
    }
}
