//! The files that the worker may open (Landlock, kernel 5.13), and what a configuration needs of them.
//!
//! A rule holds an inode, not a path. So the *parent* of each root is granted: after `rm -rf dist &&
//! build`, or when a `current` link is switched, what is new stands beneath the same parent. When even
//! that was replaced, [`covers`] says so, and only a new worker can have the new one. The master
//! makes the grants from a configuration and compares them; the worker takes them as they are.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, LandlockStatus, NetPort,
    PathBeneath, PathFd, RestrictionStatus, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError,
    RulesetStatus, Scope,
};
use serde::{Deserialize, Serialize};

use super::State;
use crate::config::model::Model;

/// What a lookup of a host name reads (resolver(5), nsswitch.conf(5), gai.conf(5)).
const RESOLVER: [&str; 6] = [
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/nsswitch.conf",
    "/etc/services",
    "/etc/gai.conf",
    "/etc/host.conf",
];

/// What is refused where no grant allows it. Connecting to a socket file is not: upstreams are.
const HANDLED: ABI = ABI::V5;

/// What may be opened.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grants {
    /// Files and directories to read, with all beneath.
    pub read: Vec<Grant>,
    /// Directories to read and change, with all beneath.
    pub write: Vec<Grant>,
    /// To give a socket a local address, with a port that the kernel takes: upstreams that are connected
    /// to from an address of their own need it.
    pub bind: bool,
}

/// A file, or a directory with all beneath it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// Where it was, all links resolved.
    #[serde(with = "crate::util::os_path")]
    pub path: PathBuf,
    /// Device and inode that it had; `None` when it was not there.
    pub identity: Option<(u64, u64)>,
    /// What it is granted for.
    pub why: String,
}

impl Grant {
    /// Grants what is at this path, whose links are resolved.
    fn new(path: PathBuf, why: String) -> Self {
        Self {
            identity: identity(&path),
            path,
            why,
        }
    }

    /// Whether another inode is at its path than was granted.
    fn replaced(&self) -> bool {
        self.identity.is_none() || identity(&self.path) != self.identity
    }
}

/// What a configuration needs: to read beneath the parents of its roots and beneath the paths of
/// `extra`, and where backends are names, what their resolution takes. `write` are directories for what
/// the server itself keeps.
///
/// A root in `/` is granted alone, not with its parent, which would be everything. It is a mount of a
/// container more often than something that is built anew; if it is replaced, [`covers`] says so.
pub fn grants(model: &Model, extra: &[PathBuf], write: &[PathBuf]) -> Grants {
    let mut read: Vec<Grant> = Vec::new();
    for root in model.roots() {
        let why = format!("root {}", root.display());
        read.extend(around(&root).map(|path| Grant::new(path, why)));
    }
    for path in extra {
        let resolved = fs::canonicalize(path).unwrap_or_else(|_| path.clone());
        read.push(Grant::new(
            resolved,
            format!("sandbox_read {}", path.display()),
        ));
    }
    if has_names(model) {
        read.extend(of_resolver());
    }
    let write = write.iter().map(|path| {
        let resolved = fs::canonicalize(path).unwrap_or_else(|_| path.clone());
        Grant::new(resolved, format!("kept in {}", path.display()))
    });
    Grants {
        read: once_each(read),
        write: once_each(write.collect()),
        bind: has_sources(model),
    }
}

/// Whether a backend is a name.
fn has_names(model: &Model) -> bool {
    let mut servers = model.upstreams.iter().flat_map(|it| &it.servers);
    servers.any(|server| server.address.is_name())
}

/// Whether an upstream is connected to from a local address.
fn has_sources(model: &Model) -> bool {
    let mut sources = model.upstreams.iter().map(|it| it.source);
    sources.any(|source| source.addresses().next().is_some())
}

/// What getaddrinfo(3) reads: its files, and the modules that nsswitch.conf names, which it loads when it
/// needs them. They stand beside the C library.
fn of_resolver() -> Vec<Grant> {
    let mut read = Vec::new();
    for name in RESOLVER {
        let Ok(resolved) = fs::canonicalize(name) else {
            continue;
        };
        // What a link leads to is kept by a service, which replaces it, in a directory of its own. All
        // of /etc would be too much.
        let path = match resolved.parent() {
            Some(parent) if resolved != Path::new(name) && parent != Path::new("/etc") => {
                without_top(parent, &resolved)
            }
            _ => resolved,
        };
        read.push(Grant::new(path, format!("names of backends: {name}")));
    }
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let libraries = library_directory(&maps).filter(|directory| *directory != Path::new("/"));
    read.extend(libraries.map(|directory| {
        let why = "names of backends: modules of the resolver".to_owned();
        Grant::new(directory.to_owned(), why)
    }));
    read
}

/// Where the C library of a process is, by its maps (proc_pid_maps(5)); `None` where it is a part of the
/// program, which then loads no modules.
fn library_directory(maps: &str) -> Option<&Path> {
    let paths = maps
        .lines()
        .filter_map(|line| line.find('/').map(|at| &line[at..]));
    let mut files = paths.map(Path::new);
    let is_libc = |file: &&Path| {
        let name = file.file_name().and_then(OsStr::to_str).unwrap_or_default();
        name.starts_with("libc.so") || name.starts_with("libc-2.")
    };
    files.find(is_libc)?.parent()
}

/// Whether a worker with the one has what the other needs. Looks at the paths of `have` as they are
/// now.
///
/// # Errors
/// The first path that is needed and not granted, or that another inode has taken since; or what else
/// is needed.
pub fn covers(have: &Grants, need: &Grants) -> Result<(), String> {
    if need.bind && !have.bind {
        return Err(
            "`source` of an upstream takes bind(2), which the worker has given up".to_owned(),
        );
    }
    let read: Vec<&Grant> = have.read.iter().chain(&have.write).collect();
    let write: Vec<&Grant> = have.write.iter().collect();
    for (needed, had) in [(&need.read, read), (&need.write, write)] {
        for grant in needed.iter().filter(|grant| grant.identity.is_some()) {
            let above = had.iter().filter(|had| grant.path.starts_with(&had.path));
            let (replaced, kept): (Vec<&Grant>, Vec<&Grant>) =
                above.copied().partition(|had| had.replaced());
            if !kept.is_empty() {
                continue;
            }
            let (path, why) = (grant.path.display(), &grant.why);
            return Err(match replaced.first() {
                Some(had) => format!(
                    "{} was replaced since the worker started, which can't open the new one ({why})",
                    had.path.display()
                ),
                None => format!("{path} is not among what the worker may open ({why})"),
            });
        }
    }
    Ok(())
}

/// Lets the calling thread, and those that it starts from now on, open what is granted and nothing else:
/// all other reads and every write, creation, removal, rename, truncation and command to a device are
/// refused with EACCES, and so are TCP bind, and signals and abstract unix sockets of who is outside.
/// What is open stays open. To be called in the main thread before there is another one.
///
/// Directories can still be passed through, and the metadata of files read. What a grant names and isn't
/// there is left out.
pub fn restrict_files(grants: &Grants) -> State {
    match enforce(grants) {
        Ok(status) => state(&status, grants),
        Err(error) => State::Missing(format!("Landlock failed: {error}")),
    }
}

fn enforce(grants: &Grants) -> Result<RestrictionStatus, RulesetError> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let write = read
        | AccessFs::WriteFile
        | AccessFs::MakeReg
        | AccessFs::MakeDir
        | AccessFs::RemoveFile
        | AccessFs::RemoveDir
        | AccessFs::Refer
        | AccessFs::Truncate;
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(HANDLED))?
        .handle_access(AccessNet::BindTcp)?
        .scope(Scope::AbstractUnixSocket | Scope::Signal)?
        .create()?;
    let of_file = AccessFs::from_file(HANDLED);
    for (granted, access) in [(&grants.read, read), (&grants.write, write)] {
        for grant in granted {
            let Ok(place) = PathFd::new(&grant.path) else {
                continue;
            };
            let access: BitFlags<AccessFs> = if grant.path.is_dir() {
                access
            } else {
                access & of_file
            };
            ruleset = ruleset.add_rule(PathBeneath::new(place, access))?;
        }
    }
    if grants.bind {
        // The port that the kernel takes: no other can be bound.
        ruleset = ruleset.add_rule(NetPort::new(0, AccessNet::BindTcp))?;
    }
    ruleset.restrict_self()
}

fn state(status: &RestrictionStatus, grants: &Grants) -> State {
    let abi = match status.landlock {
        LandlockStatus::Available {
            effective_abi,
            kernel_abi,
        } => kernel_abi.unwrap_or(effective_abi as i32),
        LandlockStatus::NotEnabled => {
            return State::Missing(
                "Landlock is in this kernel and not enabled: add landlock to its lsm= parameter"
                    .to_owned(),
            );
        }
        _ => {
            return State::Missing(
                "this kernel has no Landlock: it takes 5.13 or later, built with it".to_owned(),
            );
        }
    };
    let detail = format!(
        "Landlock {abi}: reads beneath {} paths, writes beneath {}",
        grants.read.len(),
        grants.write.len()
    );
    match status.ruleset {
        RulesetStatus::FullyEnforced => State::Enforced(detail),
        RulesetStatus::PartiallyEnforced => State::Partly {
            detail,
            lacks: lacks(abi),
        },
        RulesetStatus::NotEnforced => State::Missing("Landlock enforced nothing".to_owned()),
    }
}

/// What this version of Landlock can't refuse (landlock(7)).
fn lacks(abi: i32) -> String {
    let later = [
        (2, "renames between directories (Linux 5.19)"),
        (3, "truncation (Linux 6.2)"),
        (4, "TCP bind (Linux 6.7)"),
        (5, "commands to devices (Linux 6.10)"),
        (6, "signals and abstract sockets (Linux 6.12)"),
    ];
    let lacking = later.iter().filter(|(since, _)| abi < *since);
    let names: Vec<&str> = lacking.map(|(_, what)| *what).collect();
    if names.is_empty() {
        "some of what was asked for".to_owned()
    } else {
        names.join(", ")
    }
}

/// What to grant for a root: the parent of where it leads, or what is nearest to that where the root
/// doesn't exist.
fn around(root: &Path) -> Option<PathBuf> {
    match fs::canonicalize(root) {
        Ok(resolved) => {
            let parent = resolved.parent().unwrap_or(&resolved);
            Some(without_top(parent, &resolved))
        }
        Err(_) => {
            let parent = fs::canonicalize(root.parent()?).ok()?;
            (parent != Path::new("/")).then_some(parent)
        }
    }
}

/// The parent, unless it is `/`.
fn without_top(parent: &Path, path: &Path) -> PathBuf {
    if parent == Path::new("/") {
        path.to_owned()
    } else {
        parent.to_owned()
    }
}

/// One grant for each path, for the first reason.
fn once_each(mut grants: Vec<Grant>) -> Vec<Grant> {
    grants.sort_by(|one, other| one.path.cmp(&other.path));
    grants.dedup_by(|later, first| later.path == first.path);
    grants
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::os::unix::fs::symlink;
    use std::sync::mpsc::sync_channel;
    use std::thread;

    use super::*;
    use crate::config::{self, sources::Input};
    use crate::runtime::engine::caps::{EngineChoice, EngineKind, Selection};
    use crate::supervisor::alone::{alone, skip};

    /// The model of a site with this root, and an error page in another directory.
    fn model(root: &Path) -> std::sync::Arc<Model> {
        let directory = root.parent().unwrap();
        let text = format!("[site.\":8080\"]\nroot = {root:?}\n");
        fs::write(directory.join("beltway.toml"), text).unwrap();
        let input = Input {
            file: Some(directory.join("beltway.toml")),
            directory: directory.to_owned(),
            check_files: false,
            ..Input::default()
        };
        config::load(&input).unwrap().model
    }

    fn read_grant(path: &Path) -> Grants {
        Grants {
            read: vec![Grant::new(path.to_owned(), "a test".to_owned())],
            write: Vec::new(),
            bind: false,
        }
    }

    #[test]
    fn a_root_that_is_built_anew_can_be_read_and_nothing_else_changed() {
        alone(
            module_path!(),
            "a_root_that_is_built_anew_can_be_read_and_nothing_else_changed",
            |directory| {
                let (parent, root) = (directory.join("www"), directory.join("www/site"));
                let releases = directory.join("releases");
                for made in [&root, &releases.join("1"), &releases.join("2")] {
                    fs::create_dir_all(made).unwrap();
                    fs::write(made.join("a"), "old").unwrap();
                }
                fs::write(directory.join("secret"), "x").unwrap();
                let current = directory.join("current");
                symlink(releases.join("1"), &current).unwrap();
                let mut granted = grants(&model(&root), &[], std::slice::from_ref(&releases));
                granted.read.extend(grants(&model(&current), &[], &[]).read);
                // A thread from before stays outside: it is the administrator.
                let (go, told) = sync_channel::<()>(0);
                let (done, finished) = sync_channel::<()>(0);
                let anew = (root.clone(), releases.clone(), current.clone());
                let outside = thread::spawn(move || {
                    let (root, releases, current) = anew;
                    told.recv().unwrap();
                    fs::remove_dir_all(&root).unwrap();
                    fs::create_dir(&root).unwrap();
                    fs::write(root.join("a"), "new").unwrap();
                    fs::remove_file(&current).unwrap();
                    symlink(releases.join("2"), &current).unwrap();
                    done.send(()).unwrap();
                });
                match restrict_files(&granted) {
                    State::Missing(why) => return skip(&why),
                    state => eprintln!("{state}"),
                }
                assert_eq!(fs::read(root.join("a")).unwrap(), b"old");
                go.send(()).unwrap();
                finished.recv().unwrap();
                outside.join().unwrap();
                assert_eq!(fs::read(root.join("a")).unwrap(), b"new");
                assert_eq!(fs::read_dir(&root).unwrap().count(), 1);
                assert_eq!(fs::read(current.join("a")).unwrap(), b"old");
                fs::write(releases.join("kept"), "mine").unwrap();
                let refused = [
                    fs::read(directory.join("secret")).map(drop),
                    fs::read_dir(directory).map(drop),
                    fs::read("/etc/shadow").map(drop),
                    fs::write(root.join("a"), "changed"),
                    fs::write(parent.join("b"), "made"),
                    fs::remove_file(root.join("a")),
                    fs::rename(root.join("a"), root.join("b")),
                    fs::write("/dev/null", "x"),
                ];
                for (index, result) in refused.into_iter().enumerate() {
                    let error = result.expect_err("it was allowed");
                    assert_eq!(
                        error.kind(),
                        ErrorKind::PermissionDenied,
                        "{index}: {error}"
                    );
                }
            },
        );
    }

    #[test]
    fn the_engine_is_chosen_alike_inside() {
        alone(module_path!(), "the_engine_is_chosen_alike_inside", |_| {
            let outside = Selection::choose(EngineChoice::Auto).unwrap();
            if let State::Missing(why) = restrict_files(&Grants::default()) {
                return skip(&why);
            }
            let inside = Selection::choose(EngineChoice::Auto).unwrap();
            assert_eq!(inside.kind(), outside.kind());
            assert_eq!(inside.reason, outside.reason);
            if inside.kind() == EngineKind::Epoll {
                skip(&inside.reason);
            }
        });
    }

    #[test]
    fn a_configuration_names_the_parents_of_its_roots() {
        let directory = tempfile::tempdir().unwrap();
        let base = directory.path().canonicalize().unwrap();
        fs::create_dir_all(base.join("releases/1")).unwrap();
        symlink(base.join("releases/1"), base.join("current")).unwrap();
        let extra = [base.join("releases/1"), base.join("not-there")];
        let all = grants(&model(&base.join("current")), &extra, &[]);
        let named = |path: &Path| all.read.iter().find(|grant| grant.path == path);
        assert!(named(&base.join("releases")).is_some_and(|grant| grant.why.contains("current")));
        assert!(
            named(&base).is_none(),
            "where the link is isn't where the files are"
        );
        assert!(named(&extra[0]).is_some_and(|grant| grant.identity.is_some()));
        assert!(named(&extra[1]).is_some_and(|grant| grant.identity.is_none()));
        let resolver = |grant: &Grant| grant.why.contains("names of backends");
        assert!(!all.read.iter().any(resolver), "there are none");
        assert!(named(Path::new("/etc")).is_none() && named(Path::new("/")).is_none());
        assert!(all.write.is_empty());
    }

    /// What a configuration with this route for everything needs.
    fn needs(route: &str) -> Grants {
        let directory = tempfile::tempdir().unwrap();
        let text = format!("[site.\":8080\"]\n{route}\n");
        fs::write(directory.path().join("beltway.toml"), text).unwrap();
        let input = Input {
            file: Some(directory.path().join("beltway.toml")),
            directory: directory.path().to_owned(),
            ..Input::default()
        };
        grants(&config::load(&input).unwrap().model, &[], &[])
    }

    #[test]
    fn the_first_name_of_a_backend_takes_another_worker_and_the_next_none() {
        let none = needs("respond = 200");
        let addresses = needs("proxy = [\"10.0.0.1:80\", \"unix:/run/app.sock\"]");
        assert_eq!(
            covers(&none, &addresses),
            Ok(()),
            "to connect takes no file"
        );
        let name = needs("proxy = [\"10.0.0.1:80\", \"app.internal:80\"]");
        let lacking = covers(&addresses, &name).unwrap_err();
        assert!(lacking.contains("names of backends"), "{lacking}");
        for more in ["\"db.internal:80\"", "\"srv:_http._tcp.app.internal\""] {
            let more = needs(&format!("proxy = [\"app.internal:80\", {more}]"));
            assert_eq!(covers(&name, &more), Ok(()));
        }
        assert_eq!(covers(&name, &none), Ok(()), "less is always there");
    }

    #[test]
    fn a_name_is_resolved_by_files_and_modules_and_not_by_all_of_etc() {
        let all = needs("proxy = \"srv:_http._tcp.app.internal\"");
        let named = |path: &str| all.read.iter().any(|grant| grant.path == Path::new(path));
        assert!(named("/etc/hosts") || !Path::new("/etc/hosts").exists());
        assert!(!named("/etc") && !named("/"));
        let maps = "7f00-7f01 r--p 00000000 08:01 12   /usr/lib/x86_64-linux-gnu/libm.so.6\n\
            7f01-7f02 rw-p 00000000 00:00 0\n\
            7f02-7f03 r-xp 00000000 08:01 13   /usr/lib/x86_64-linux-gnu/libc.so.6\n";
        let directory = Path::new("/usr/lib/x86_64-linux-gnu");
        assert_eq!(library_directory(maps), Some(directory));
        let old = "7f02-7f03 r-xp 00000000 08:01 13   /lib/libc-2.31.so\n";
        assert_eq!(library_directory(old), Some(Path::new("/lib")));
        assert_eq!(library_directory("7f01-7f02 rw-p 0 00:00 0 [heap]\n"), None);
    }

    #[test]
    fn a_root_in_the_top_directory_does_not_grant_everything() {
        assert_eq!(around(Path::new("/usr")).unwrap(), Path::new("/usr"));
        assert_eq!(around(Path::new("/not-there")), None);
        assert_eq!(
            around(Path::new("/usr/not-there")).unwrap(),
            Path::new("/usr")
        );
        assert_eq!(around(Path::new("/")).unwrap(), Path::new("/"));
    }

    #[test]
    fn a_replaced_parent_and_a_new_place_are_found() {
        let directory = tempfile::tempdir().unwrap();
        let base = directory.path().canonicalize().unwrap();
        for name in ["www/site", "other"] {
            fs::create_dir_all(base.join(name)).unwrap();
        }
        let have = read_grant(&base.join("www"));
        assert_eq!(covers(&have, &have), Ok(()));
        assert_eq!(covers(&have, &read_grant(&base.join("www/site"))), Ok(()));
        assert_eq!(covers(&have, &read_grant(&base.join("not-there"))), Ok(()));
        let lacking = covers(&have, &read_grant(&base.join("other"))).unwrap_err();
        assert!(
            lacking.contains("other") && lacking.contains("not among"),
            "{lacking}"
        );
        let written = Grants {
            write: have.read.clone(),
            ..Grants::default()
        };
        assert_eq!(covers(&written, &have), Ok(()));
        assert!(covers(&have, &written).is_err(), "reading is not writing");
        fs::rename(base.join("www"), base.join("old")).unwrap();
        fs::create_dir_all(base.join("www/site")).unwrap();
        for need in [
            read_grant(&base.join("www")),
            read_grant(&base.join("www/site")),
        ] {
            let replaced = covers(&have, &need).unwrap_err();
            assert!(replaced.contains("www was replaced"), "{replaced}");
        }
    }

    #[test]
    fn grants_survive_the_way_to_the_worker() {
        use std::os::unix::ffi::OsStrExt as _;
        let mut grants = read_grant(Path::new("/usr"));
        grants.read[0].path = PathBuf::from(OsStr::from_bytes(b"/srv/\xff"));
        let text = serde_json::to_string(&grants).unwrap();
        assert_eq!(serde_json::from_str::<Grants>(&text).unwrap(), grants);
    }

    #[test]
    fn an_older_kernel_is_told_what_it_lacks() {
        assert!(lacks(3).starts_with("TCP bind") && lacks(3).contains("6.12"));
        assert_eq!(lacks(5), "signals and abstract sockets (Linux 6.12)");
    }
}
