//! The file that `beltway tune` writes and a start reads: numbers, and on which machine they were
//! measured.
//!
//! What is broken or out of bounds, or comes from another machine or kernel, is refused as a whole:
//! numbers that don't fit are worse than those that hold everywhere. Parsing is pure.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Read as _;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use crate::runtime::tuning::Tuning;

/// Version of the format.
const VERSION: i64 = 1;

/// Largest file that is read.
const FILE_MAX: u64 = 16 << 10;

/// Where the numbers of the whole machine are.
const SYSTEM_FILE: &str = "/var/lib/beltway/tune.toml";

/// What tells machines and kernels apart, as far as numbers depend on them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// Release of the kernel: `6.1.0-18-amd64`.
    pub kernel: String,
    /// Architecture: `x86_64`.
    pub architecture: String,
    /// Model of the CPU, where the kernel tells one.
    pub cpu: String,
    /// A hash of machine-id(5); the same disk image on another machine has another one.
    pub machine: String,
}

impl Host {
    /// Asks this machine.
    pub fn this() -> Self {
        let system = rustix::system::uname();
        let text = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
        let cpus = read_bounded(Path::new("/proc/cpuinfo")).unwrap_or_default();
        let mut lines = cpus.lines();
        let cpu = lines.find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let id = read_bounded(Path::new("/etc/machine-id")).unwrap_or_default();
        Self {
            kernel: text(system.release()),
            architecture: text(system.machine()),
            cpu: cpu.map_or_else(String::new, |(_, model)| model.trim().to_owned()),
            machine: format!("{:016x}", fnv(id.trim().as_bytes())),
        }
    }

    fn fields(&self) -> [(&'static str, &str); 4] {
        [
            ("kernel", &self.kernel),
            ("architecture", &self.architecture),
            ("cpu", &self.cpu),
            ("machine", &self.machine),
        ]
    }

    /// What differs from another one, in words.
    fn difference(&self, other: &Self) -> Option<String> {
        let pairs = self.fields().into_iter().zip(other.fields());
        let mut differing = pairs.filter(|(own, other)| own.1 != other.1);
        let ((name, own), (_, other)) = differing.next()?;
        Some(format!("its {name} is {other:?}, and this is {own:?}"))
    }
}

/// FNV-1a: an identifier that stays the same in every version.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// What was measured, and where.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Measured {
    /// The machine.
    pub host: Host,
    /// The route to the client that was measured: `loopback`, or an address.
    pub route: String,
    /// The disk, as a directory.
    pub disk: String,
    /// The numbers. What wasn't measured has its default, and isn't written.
    pub tuning: Tuning,
    /// Names of those that were measured.
    pub keys: Vec<&'static str>,
}

impl Measured {
    /// As a file.
    pub fn to_toml(&self) -> String {
        let mut text = format!(
            "# Written by `beltway tune`. Another kernel or machine makes it stale.\n\
             version = {VERSION}\n\
             route = {}\ndisk = {}\n\n[host]\n",
            quoted(&self.route),
            quoted(&self.disk),
        );
        for (name, value) in self.host.fields() {
            let _ = writeln!(text, "{name} = {}", quoted(value));
        }
        text.push_str("\n[use]\n");
        for key in KEYS.iter().filter(|key| self.keys.contains(&key.name)) {
            let value = match (key.get)(&self.tuning) {
                Some(value) => value.to_string(),
                None => "false".to_owned(),
            };
            let _ = writeln!(text, "{} = {value}", key.name);
        }
        text
    }

    /// Reads a file for this host.
    ///
    /// # Errors
    /// Why it can't be used, in words that follow its name.
    pub fn parse(text: &str, host: &Host) -> Result<Self, String> {
        let table: toml::Table = text
            .parse()
            .map_err(|error: toml::de::Error| format!("it is no TOML: {}", error.message()))?;
        match table.get("version").and_then(toml::Value::as_integer) {
            Some(VERSION) => {}
            Some(version) => return Err(format!("it has version {version}, not {VERSION}")),
            None => return Err("it has no version".to_owned()),
        }
        let word = |table: &toml::Table, name: &str| {
            let value = table.get(name).and_then(toml::Value::as_str);
            value.unwrap_or_default().to_owned()
        };
        let part = |name: &str| {
            let part = table.get(name).and_then(toml::Value::as_table);
            part.ok_or_else(|| format!("it has no [{name}]"))
        };
        let known = part("host")?;
        let measured_on = Host {
            kernel: word(known, "kernel"),
            architecture: word(known, "architecture"),
            cpu: word(known, "cpu"),
            machine: word(known, "machine"),
        };
        if let Some(difference) = host.difference(&measured_on) {
            return Err(format!("it is stale: {difference}"));
        }
        let mut tuning = Tuning::default();
        let mut keys = Vec::new();
        for (name, value) in part("use")? {
            // Of a version that knows more; the others hold all the same.
            let Some(key) = KEYS.iter().find(|key| key.name == name) else {
                continue;
            };
            let number = match value {
                toml::Value::Boolean(false) if key.may_be_false => None,
                value => Some(key.number(value)?),
            };
            (key.set)(&mut tuning, number);
            keys.push(key.name);
        }
        Ok(Self {
            host: measured_on,
            route: word(&table, "route"),
            disk: word(&table, "disk"),
            tuning,
            keys,
        })
    }
}

fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

/// One number of the file.
struct Key {
    name: &'static str,
    bounds: RangeInclusive<u64>,
    may_be_false: bool,
    get: fn(&Tuning) -> Option<u64>,
    set: fn(&mut Tuning, Option<u64>),
}

const KEYS: [Key; 5] = [
    Key {
        name: "copy_up_to",
        bounds: Tuning::COPY_UP_TO,
        may_be_false: false,
        get: |tuning| Some(tuning.copy_up_to),
        set: |tuning, value| tuning.copy_up_to = value.unwrap_or(tuning.copy_up_to),
    },
    Key {
        name: "sendfile_from",
        bounds: Tuning::SENDFILE_FROM,
        may_be_false: false,
        get: |tuning| Some(tuning.sendfile_from),
        set: |tuning, value| tuning.sendfile_from = value.unwrap_or(tuning.sendfile_from),
    },
    Key {
        name: "splice_from",
        bounds: Tuning::SPLICE_FROM,
        may_be_false: false,
        get: |tuning| Some(tuning.splice_from),
        set: |tuning, value| tuning.splice_from = value.unwrap_or(tuning.splice_from),
    },
    Key {
        name: "zerocopy_from",
        bounds: Tuning::ZEROCOPY_FROM,
        may_be_false: true,
        get: |tuning| tuning.zerocopy_from,
        set: |tuning, value| tuning.zerocopy_from = value,
    },
    Key {
        name: "direct_depth",
        bounds: Tuning::DIRECT_DEPTH,
        may_be_false: false,
        get: |tuning| Some(tuning.direct_depth as u64),
        set: |tuning, value| {
            let depth = value.and_then(|value| usize::try_from(value).ok());
            tuning.direct_depth = depth.unwrap_or(tuning.direct_depth);
        },
    },
];

impl Key {
    fn number(&self, value: &toml::Value) -> Result<u64, String> {
        let number = value.as_integer().and_then(|it| u64::try_from(it).ok());
        number.filter(|it| self.bounds.contains(it)).ok_or_else(|| {
            let (low, high) = (self.bounds.start(), self.bounds.end());
            format!(
                "`{}` is {value}, and has to be from {low} to {high}",
                self.name
            )
        })
    }
}

/// The numbers in force, and where they come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InForce {
    /// The numbers.
    pub tuning: Tuning,
    /// The file; `None` where the defaults hold.
    pub file: Option<PathBuf>,
    /// Files that can't be used, each with the reason, in words for the log.
    pub refused: Vec<String>,
}

impl InForce {
    /// In words: `defaults`, or the file.
    pub fn origin(&self) -> String {
        match &self.file {
            Some(file) => file.display().to_string(),
            None => "defaults".to_owned(),
        }
    }
}

/// Where this user's `beltway tune` writes, and where a start looks first: `$XDG_STATE_HOME`, or where
/// the XDG base directory specification has it without that. `None` without a home, and for root, whose
/// numbers are those of the machine, unless it names another place.
fn user_file(variable: impl Fn(&str) -> Option<String>, is_root: bool) -> Option<PathBuf> {
    // A path that isn't absolute is to be ignored, the specification says.
    let absolute = |name: &str| Some(PathBuf::from(variable(name)?)).filter(|it| it.is_absolute());
    let home = || Some(absolute("HOME")?.join(".local/state")).filter(|_| !is_root);
    let state = absolute("XDG_STATE_HOME").or_else(home)?;
    Some(state.join("beltway/tune.toml"))
}

/// The files that are looked at, in this order. The first is where `beltway tune` writes.
pub fn files() -> Vec<PathBuf> {
    let is_root = rustix::process::geteuid().is_root();
    let own = user_file(|name| std::env::var(name).ok(), is_root);
    own.into_iter().chain([SYSTEM_FILE.into()]).collect()
}

/// The numbers that hold on this machine: of the first file that can be used, else the defaults.
pub fn in_force() -> InForce {
    in_force_of(&files(), &Host::this())
}

fn in_force_of(files: &[PathBuf], host: &Host) -> InForce {
    let mut found = InForce::default();
    for file in files {
        let text = match read_bounded(file) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            // Of another user's home, where the worker isn't who has started it.
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => continue,
            Err(error) => {
                let file = file.display();
                found.refused.push(format!("{file} can't be read: {error}"));
                continue;
            }
        };
        match Measured::parse(&text, host) {
            Ok(measured) => {
                found.tuning = measured.tuning;
                found.file = Some(file.clone());
                return found;
            }
            Err(why) => found.refused.push(format!(
                "{} can't be used: {why}; run `beltway tune` again",
                file.display()
            )),
        }
    }
    found
}

/// Reads a file as far as [`FILE_MAX`]. One that isn't a plain file is an error, so that a pipe in its
/// place holds nobody up.
fn read_bounded(file: &Path) -> std::io::Result<String> {
    if !std::fs::metadata(file)?.is_file() {
        return Err(std::io::Error::other("it is no plain file"));
    }
    let mut text = String::new();
    File::open(file)?.take(FILE_MAX).read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> Host {
        Host {
            kernel: "6.1.0".into(),
            architecture: "x86_64".into(),
            cpu: "Some \"CPU\"".into(),
            machine: "00".into(),
        }
    }

    fn measured() -> Measured {
        Measured {
            host: host(),
            route: "loopback".into(),
            disk: "/srv".into(),
            tuning: Tuning {
                copy_up_to: 4096,
                zerocopy_from: None,
                direct_depth: 2,
                ..Tuning::default()
            },
            keys: vec!["copy_up_to", "zerocopy_from", "direct_depth"],
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let text = measured().to_toml();
        let read = Measured::parse(&text, &host()).unwrap();
        assert_eq!(read.tuning, measured().tuning);
        assert!(!text.contains("splice_from"), "it was not measured: {text}");
    }

    #[test]
    fn another_machine_or_kernel_makes_it_stale() {
        let text = measured().to_toml();
        let kernel = Host {
            kernel: "6.2.0".into(),
            ..host()
        };
        let machine = Host {
            machine: "01".into(),
            ..host()
        };
        for (host, told) in [
            (kernel, "it is stale: its kernel is \"6.1.0\""),
            (machine, "its machine"),
        ] {
            let why = Measured::parse(&text, &host).unwrap_err();
            assert!(why.contains(told), "{why}");
        }
    }

    #[test]
    fn what_is_broken_or_out_of_bounds_is_refused_as_a_whole() {
        let with = |line: &str| measured().to_toml() + line + "\n";
        for (text, told) in [
            (String::new(), "no version"),
            ("version = 2".into(), "version 2"),
            ("version = \"1\"".into(), "no version"),
            ("version = 1".into(), "no [host]"),
            ("\u{0}".into(), "no TOML"),
            (with("splice_from = 1"), "from 16384 to"),
            (with("splice_from = -1"), "`splice_from` is -1"),
            (with("splice_from = 99999999999999"), "`splice_from`"),
            (with("splice_from = \"x\""), "`splice_from`"),
            (with("splice_from = false"), "`splice_from` is false"),
            (with("sendfile_from = 1.5"), "`sendfile_from`"),
            (with("sendfile_from = 0"), "`sendfile_from`"),
        ] {
            let why = Measured::parse(&text, &host()).unwrap_err();
            assert!(why.contains(told), "{text}\n{why}");
        }
        let newer = Measured::parse(&with("something_new = 1"), &host()).unwrap();
        assert_eq!(newer.tuning, measured().tuning);
    }

    #[test]
    fn the_first_file_that_can_be_used_counts_and_the_others_are_told() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        std::fs::write(at("stale"), measured().to_toml().replace("6.1.0", "5.0")).unwrap();
        std::fs::write(at("good"), measured().to_toml()).unwrap();
        std::fs::write(at("long"), "#".repeat(FILE_MAX as usize + 1)).unwrap();
        let files = ["missing", "stale", "long", ".", "good"].map(at);
        let found = in_force_of(&files, &host());
        assert_eq!(found.tuning, measured().tuning);
        assert_eq!(found.file, Some(at("good")));
        assert_eq!(found.refused.len(), 3, "{:?}", found.refused);
        let none = in_force_of(&files[..2], &host());
        assert_eq!(
            (none.tuning, none.origin()),
            (Tuning::default(), "defaults".into())
        );
    }

    #[test]
    fn the_users_own_file_comes_before_that_of_the_machine() {
        let of = |state: &'static str, home: &'static str| {
            move |name: &str| match name {
                "XDG_STATE_HOME" => Some(state.to_owned()).filter(|it| !it.is_empty()),
                _ => Some(home.to_owned()).filter(|it| !it.is_empty()),
            }
        };
        for (state, home, root, file) in [
            ("/s", "/h", false, Some("/s/beltway/tune.toml")),
            ("", "/h", false, Some("/h/.local/state/beltway/tune.toml")),
            ("s", "/h", false, Some("/h/.local/state/beltway/tune.toml")),
            ("", "", false, None),
            ("/s", "/h", true, Some("/s/beltway/tune.toml")),
            ("", "/h", true, None),
        ] {
            let found = user_file(of(state, home), root);
            assert_eq!(found, file.map(PathBuf::from));
        }
    }
}
