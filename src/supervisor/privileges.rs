//! Who the worker is: the user it becomes, the capabilities it gives up, and what it can read after.
//!
//! The master stays what it was started as and does what needs privileges: it binds, reads keys, opens
//! logs and raises limits. The worker meets the clients, so it drops all of that in its main thread,
//! before any other thread exists. This module knows neither of the two; it is called by them.

use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};
use serde::{Deserialize, Serialize};

use super::sys::accounts;
use crate::util::unnamed_file::unnamed_file;

/// Users that a worker of root becomes when nobody says which, in order of preference.
const USERS_DEFAULT: [&str; 2] = ["beltway", "nobody"];

/// Descriptors that the master asks for beyond what it was given: enough for what a core can hold with
/// the memory of a usual host.
const DESCRIPTORS: u64 = 1 << 20;

/// Capabilities are numbers below this (`CAP_LAST_CAP` is 40 since kernel 5.9).
const CAPABILITIES_MAX: u32 = 64;

/// A user as the kernel knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Its name, or its number where it has none.
    pub user: String,
    /// Its number.
    pub uid: u32,
    /// The number of its group.
    pub gid: u32,
    /// The numbers of all its groups.
    pub groups: Vec<u32>,
}

impl Identity {
    /// Who this process is.
    pub fn current() -> Self {
        let uid = rustix::process::geteuid().as_raw();
        let groups = rustix::process::getgroups().unwrap_or_default();
        Self {
            user: name_of(uid),
            uid,
            gid: rustix::process::getegid().as_raw(),
            groups: groups.into_iter().map(|group| group.as_raw()).collect(),
        }
    }
}

/// Whom the worker is to become; `None` to stay what it is. Users and groups are names or numbers.
///
/// Root without a `user` becomes `beltway` where that user exists, else `nobody`. `root` can be asked
/// for. Nobody else can become anybody.
///
/// # Errors
/// A user or group that doesn't exist, or that this process may not become, with what to do.
pub fn resolve(
    user: Option<&str>,
    group: Option<&str>,
    is_root: bool,
) -> Result<Option<Identity>, String> {
    let wanted = match user {
        Some(name) => Some(find_user(name)?),
        None if is_root => Some(default_user()?),
        None => None,
    };
    let gid = group.map(find_group).transpose()?;
    if !is_root {
        return stay(wanted.as_ref(), gid).map(|()| None);
    }
    let Some(wanted) = wanted else {
        return Ok(None);
    };
    let gid = gid.unwrap_or(wanted.gid);
    // Who has no entry is in no further group.
    let groups = match accounts::user_by_name(&wanted.name) {
        Ok(Some(_)) => accounts::groups_of(&wanted.name, gid).map_err(|error| {
            format!("the groups of user {} can't be read: {error}", wanted.name)
        })?,
        _ => vec![gid],
    };
    Ok(Some(Identity {
        user: wanted.name,
        uid: wanted.uid,
        gid,
        groups,
    }))
}

/// Becomes this user, or stays what it is, and gives up what a worker doesn't need: all capabilities,
/// in every set, and the way to gain any by exec (`no_new_privs`). To be called in the main thread
/// before there is another one: capabilities belong to a thread, and a libc ends a process whose threads
/// don't all change alike.
///
/// A process that stays root keeps `CAP_DAC_READ_SEARCH`, which is what somebody wants who has files
/// served as root: to read them all. It can't write what root's own files don't let it, bind, trace,
/// mount or change user again.
///
/// The kernel makes a process that changed its user undumpable and forgets its `PR_SET_PDEATHSIG`.
///
/// # Errors
/// EPERM when this process may not become that user. It must then not go on.
pub fn drop_to(identity: Option<&Identity>) -> io::Result<()> {
    for number in 0..CAPABILITIES_MAX {
        match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << number)) {
            Ok(()) => {}
            // No such capability: this was the last one.
            Err(Errno::INVAL) => break,
            // It bounds what exec gives, and `no_new_privs` lets exec give nothing.
            Err(Errno::PERM) => break,
            Err(errno) => return Err(errno.into()),
        }
    }
    if let Some(identity) = identity
        && *identity != Identity::current()
    {
        accounts::become_user(identity.uid, identity.gid, &identity.groups)?;
    }
    // Kernels before 4.3 have none.
    match clear_ambient_capability_set() {
        Ok(()) | Err(Errno::INVAL) => {}
        Err(errno) => return Err(errno.into()),
    }
    let kept = if rustix::process::geteuid().is_root() {
        capabilities(None)?.permitted & CapabilitySet::DAC_READ_SEARCH
    } else {
        CapabilitySet::empty()
    };
    set_capabilities(
        None,
        CapabilitySets {
            effective: kept,
            permitted: kept,
            inheritable: CapabilitySet::empty(),
        },
    )?;
    set_no_new_privs(true)?;
    Ok(())
}

/// What the process may use, after [`raise_limits`]; `None` is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Open descriptors (`RLIMIT_NOFILE`).
    pub nofile: Option<u64>,
    /// Bytes of locked memory (`RLIMIT_MEMLOCK`), which rings of older kernels count against.
    pub memlock: Option<u64>,
}

/// Lifts the limits of descriptors and of locked memory as far as this process may: the soft limit to
/// the hard one, and the hard one, too, where that is allowed. Children inherit them.
pub fn raise_limits() -> Limits {
    let enough = getrlimit(Resource::Nofile)
        .maximum
        .map(|hard| hard.max(DESCRIPTORS));
    Limits {
        nofile: raise(Resource::Nofile, enough),
        memlock: raise(Resource::Memlock, None),
    }
}

/// Those of these paths that this process can't list or, where they are files, read.
pub fn unreadable(paths: &[PathBuf]) -> Vec<(PathBuf, io::Error)> {
    let failed = |path: &PathBuf| Some((path.clone(), try_read(path).err()?.into()));
    paths.iter().filter_map(failed).collect()
}

fn try_read(path: &Path) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    match open(path, flags | OFlags::DIRECTORY, Mode::empty()) {
        Err(Errno::NOTDIR) => open(path, flags, Mode::empty()).map(drop),
        opened => opened.map(drop),
    }
}

/// Those of these directories in which this process can't make a file.
pub fn unwritable(directories: &[PathBuf]) -> Vec<(PathBuf, io::Error)> {
    let failed = |path: &PathBuf| Some((path.clone(), unnamed_file(path).err()?.into()));
    directories.iter().filter_map(failed).collect()
}

/// Raises both limits to `target`, or the soft one to the hard one, and gives the soft one that holds.
fn raise(resource: Resource, target: Option<u64>) -> Option<u64> {
    let old = getrlimit(resource);
    for maximum in [target, old.maximum] {
        let new = Rlimit {
            current: maximum,
            maximum,
        };
        if setrlimit(resource, new).is_ok() {
            return maximum;
        }
    }
    old.current
}

fn name_of(uid: u32) -> String {
    match accounts::user_by_uid(uid) {
        Ok(Some(user)) => user.name,
        _ => uid.to_string(),
    }
}

fn find_user(name: &str) -> Result<accounts::User, String> {
    let failed = |error| format!("user {name} can't be looked up: {error}");
    if let Some(user) = accounts::user_by_name(name).map_err(failed)? {
        return Ok(user);
    }
    let Some(uid) = number(name) else {
        return Err(format!(
            "there is no user {name}; make one, for example with: useradd --system --no-create-home {name}"
        ));
    };
    let known = accounts::user_by_uid(uid).map_err(failed)?;
    Ok(known.unwrap_or_else(|| accounts::User {
        name: name.to_owned(),
        uid,
        // A number without an entry has no group of its own; the same number is the custom.
        gid: uid,
    }))
}

/// A user or group by number. The highest one is none: the kernel reads it as "leave what is".
fn number(text: &str) -> Option<u32> {
    text.parse().ok().filter(|number| *number != u32::MAX)
}

fn default_user() -> Result<accounts::User, String> {
    for name in USERS_DEFAULT {
        let found = accounts::user_by_name(name);
        if let Some(user) =
            found.map_err(|error| format!("user {name} can't be looked up: {error}"))?
        {
            return Ok(user);
        }
    }
    Err(
        "started as root, and there is neither a user beltway nor a user nobody to become; \
         make one with: useradd --system --no-create-home beltway, or set user"
            .to_owned(),
    )
}

fn find_group(name: &str) -> Result<u32, String> {
    let found = accounts::group_by_name(name)
        .map_err(|error| format!("group {name} can't be looked up: {error}"))?;
    found.or_else(|| number(name)).ok_or_else(|| {
        format!("there is no group {name}; make one, for example with: groupadd --system {name}")
    })
}

/// Whether what is wanted is what this process, which can't change, is already.
fn stay(user: Option<&accounts::User>, gid: Option<u32>) -> Result<(), String> {
    let current = Identity::current();
    if let Some(user) = user
        && user.uid != current.uid
    {
        let (wanted, now) = (&user.name, &current.user);
        return Err(format!(
            "user {wanted} was asked for, and only root can become somebody else: \
             start as root, or as {wanted}, or leave user out to stay {now}"
        ));
    }
    match gid {
        Some(gid) if gid != current.gid => Err(format!(
            "group {gid} was asked for, and only root can take another one: \
             start as root, or leave group out to stay in group {}",
            current.gid
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::supervisor::alone::{alone, is_root, skip};

    #[test]
    fn root_becomes_somebody_and_can_be_asked_to_stay() {
        let somebody = resolve(None, None, true)
            .unwrap()
            .expect("root must change");
        assert!(USERS_DEFAULT.contains(&somebody.user.as_str()) && somebody.uid != 0);
        assert!(somebody.groups.contains(&somebody.gid));
        let root = resolve(Some("root"), None, true).unwrap().unwrap();
        assert_eq!((root.uid, root.gid), (0, 0));
        assert_eq!(
            resolve(Some("0"), None, true).unwrap().unwrap().user,
            "root"
        );
        let number = resolve(Some("54321"), Some("54322"), true).unwrap();
        let expected = Identity {
            user: "54321".to_owned(),
            uid: 54321,
            gid: 54322,
            groups: vec![54322],
        };
        assert_eq!(number, Some(expected));
    }

    #[test]
    fn who_can_not_be_become_is_an_error_that_helps() {
        for (user, group, is_root, word) in [
            (Some("beltway-nobody-at-all"), None, true, "useradd"),
            (None, Some("beltway-no-group"), true, "groupadd"),
            (Some("4294967295"), None, true, "there is no user"),
            (None, Some("4294967295"), true, "there is no group"),
            (Some("54321"), None, false, "start as root, or as 54321"),
            (None, Some("54321"), false, "leave group out"),
        ] {
            let text = resolve(user, group, is_root).unwrap_err();
            assert!(text.contains(word), "{text}");
        }
        assert_eq!(resolve(None, None, false), Ok(None));
        let current = Identity::current();
        let (uid, gid) = (current.uid.to_string(), current.gid.to_string());
        assert_eq!(resolve(Some(&uid), Some(&gid), false), Ok(None));
    }

    /// The lines of status(5) about what a thread may do.
    fn status(names: &[&str]) -> Vec<String> {
        let text = fs::read_to_string("/proc/thread-self/status").unwrap();
        let lines = text.lines().filter_map(|line| line.split_once(":\t"));
        lines
            .filter(|(name, _)| names.contains(name))
            .map(|(_, value)| value.trim().to_owned())
            .collect()
    }

    const SETS: [&str; 5] = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"];

    #[test]
    fn nobody_has_nothing_left() {
        alone(module_path!(), "nobody_has_nothing_left", |directory| {
            if !is_root() {
                return skip("only root can become somebody else");
            }
            let closed = directory.join("closed");
            fs::create_dir(&closed).unwrap();
            fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
            fs::write(directory.join("file"), "x").unwrap();
            let somebody = resolve(None, None, true).unwrap().unwrap();
            drop_to(Some(&somebody)).unwrap();
            assert_eq!(status(&SETS), ["0000000000000000"; 5]);
            assert_eq!(status(&["NoNewPrivs"]), ["1"]);
            let ids = [somebody.uid; 4].map(|uid| uid.to_string()).join("\t");
            assert_eq!(status(&["Uid"]), [ids]);
            assert!(fs::read("/etc/shadow").is_err());
            assert!(drop_to(Some(&resolve(Some("root"), None, true).unwrap().unwrap())).is_err());
            let paths = [
                directory.to_owned(),
                directory.join("file"),
                closed.clone(),
                directory.join("not-there"),
            ];
            let failed = unreadable(&paths);
            let names: Vec<_> = failed.iter().map(|(path, _)| path).collect();
            assert_eq!(names, [&paths[2], &paths[3]]);
            assert_eq!(failed[0].1.raw_os_error(), Some(libc::EACCES));
        });
    }

    #[test]
    fn root_that_stays_can_read_and_nothing_more() {
        alone(
            module_path!(),
            "root_that_stays_can_read_and_nothing_more",
            |directory| {
                if !is_root() {
                    return skip("only root can stay root");
                }
                let path = directory.join("theirs");
                fs::write(&path, "x").unwrap();
                std::os::unix::fs::chown(&path, Some(54321), Some(54321)).unwrap();
                fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
                drop_to(None).unwrap();
                let only = "0000000000000004";
                assert_eq!(status(&["CapPrm", "CapEff"]), [only; 2]);
                assert_eq!(
                    status(&["CapInh", "CapBnd", "CapAmb"]),
                    ["0000000000000000"; 3]
                );
                assert_eq!(fs::read(&path).unwrap(), b"x");
                assert!(fs::write(&path, "y").is_err());
            },
        );
    }

    #[test]
    fn limits_only_go_up() {
        alone(module_path!(), "limits_only_go_up", |_| {
            let before = getrlimit(Resource::Nofile);
            let low = Rlimit {
                current: Some(64),
                maximum: before.maximum,
            };
            setrlimit(Resource::Nofile, low).unwrap();
            let raised = raise_limits();
            let now = getrlimit(Resource::Nofile);
            assert_eq!(raised.nofile, now.current);
            assert!(
                now.current
                    .is_none_or(|now| now >= before.maximum.unwrap_or(now))
            );
            assert_eq!(raised.memlock, getrlimit(Resource::Memlock).current);
            let mine = capabilities(None).unwrap().effective;
            if mine.contains(CapabilitySet::SYS_RESOURCE) {
                assert_eq!(raised.memlock, None, "who may set limits has none");
            }
        });
    }
}
