//! Users and groups by name or number, and becoming one of them.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::io;
use std::mem::MaybeUninit;
use std::ptr;

/// Bytes for the strings of one entry at first; doubled while the system asks for more.
const ENTRY_BYTES: usize = 1 << 10;

/// Most bytes for the strings of one entry: a group lists its members.
const ENTRY_BYTES_MAX: usize = 1 << 22;

/// Most groups that a user can be in (`NGROUPS_MAX`, credentials(7)).
const GROUPS_MAX: usize = 1 << 16;

/// An entry of passwd(5), from whatever source the system has for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::supervisor) struct User {
    /// The login name.
    pub(in crate::supervisor) name: String,
    /// The number.
    pub(in crate::supervisor) uid: u32,
    /// The number of the primary group.
    pub(in crate::supervisor) gid: u32,
}

/// The user of this name; `None` when there is none.
///
/// # Errors
/// When the source of users can't be asked.
pub(in crate::supervisor) fn user_by_name(name: &str) -> io::Result<Option<User>> {
    let Ok(name) = CString::new(name) else {
        return Ok(None);
    };
    // SAFETY: the name ends with its zero; the other pointers are those that `entry` vouches for.
    let found = entry(
        |out, bytes, len, found| unsafe { libc::getpwnam_r(name.as_ptr(), out, bytes, len, found) },
        user,
    )?;
    Ok(found)
}

/// The user of this number; `None` when it has no entry.
///
/// # Errors
/// When the source of users can't be asked.
pub(in crate::supervisor) fn user_by_uid(uid: u32) -> io::Result<Option<User>> {
    // SAFETY: the pointers are those that `entry` vouches for.
    let found = entry(
        |out, bytes, len, found| unsafe { libc::getpwuid_r(uid, out, bytes, len, found) },
        user,
    )?;
    Ok(found)
}

/// The number of the group of this name; `None` when there is none.
///
/// # Errors
/// When the source of groups can't be asked.
pub(in crate::supervisor) fn group_by_name(name: &str) -> io::Result<Option<u32>> {
    let Ok(name) = CString::new(name) else {
        return Ok(None);
    };
    // SAFETY: the name ends with its zero; the other pointers are those that `entry` vouches for.
    entry(
        |out, bytes, len, found| unsafe { libc::getgrnam_r(name.as_ptr(), out, bytes, len, found) },
        |group: &libc::group| group.gr_gid,
    )
}

/// The groups of a user, with `gid` among them.
///
/// # Errors
/// When there are more than the kernel takes.
pub(in crate::supervisor) fn groups_of(name: &str, gid: u32) -> io::Result<Vec<u32>> {
    let name = CString::new(name)?;
    let mut groups = vec![0; 32];
    loop {
        let mut count = libc::c_int::try_from(groups.len()).unwrap_or(libc::c_int::MAX);
        // SAFETY: the name ends with its zero, and the call writes at most `count` groups.
        let done =
            unsafe { libc::getgrouplist(name.as_ptr(), gid, groups.as_mut_ptr(), &raw mut count) };
        if done >= 0 {
            groups.truncate(usize::try_from(count).unwrap_or(0));
            return Ok(groups);
        }
        if groups.len() >= GROUPS_MAX {
            return Err(io::Error::from_raw_os_error(libc::E2BIG));
        }
        groups.resize(groups.len() * 2, 0);
    }
}

/// Takes these groups, then this group and this user in place of real, effective and saved ones, for
/// every thread of the process.
///
/// # Errors
/// EPERM without the capabilities for it. What was changed until then stays changed.
pub(in crate::supervisor) fn become_user(uid: u32, gid: u32, groups: &[u32]) -> io::Result<()> {
    // SAFETY: the pointer and the count are those of one slice.
    if unsafe { libc::setgroups(groups.len(), groups.as_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the calls take numbers alone.
    if unsafe { libc::setresgid(gid, gid, gid) != 0 || libc::setresuid(uid, uid, uid) != 0 } {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn user(entry: &libc::passwd) -> User {
    // SAFETY: the name of an entry that was found ends with its zero, in the buffer that lives.
    let name = unsafe { CStr::from_ptr(entry.pw_name) };
    User {
        name: name.to_string_lossy().into_owned(),
        uid: entry.pw_uid,
        gid: entry.pw_gid,
    }
}

/// Asks for an entry with a buffer that grows as needed. `ask` is given the place of the entry, the
/// buffer with its length, and the place of the result, all of which outlive the call.
fn entry<E, T>(
    ask: impl Fn(*mut E, *mut libc::c_char, usize, *mut *mut E) -> libc::c_int,
    take: impl Fn(&E) -> T,
) -> io::Result<Option<T>> {
    let mut bytes: Vec<libc::c_char> = vec![0; ENTRY_BYTES];
    loop {
        let mut out = MaybeUninit::<E>::uninit();
        let mut found = ptr::null_mut();
        let error = ask(
            out.as_mut_ptr(),
            bytes.as_mut_ptr(),
            bytes.len(),
            &raw mut found,
        );
        match error {
            // SAFETY: the result points to the entry, which was filled, and its strings are in `bytes`.
            0 => return Ok(unsafe { found.as_ref() }.map(take)),
            libc::EINTR => {}
            libc::ERANGE if bytes.len() < ENTRY_BYTES_MAX => bytes.resize(bytes.len() * 2, 0),
            // What getpwnam(3) lists for "not found" besides 0.
            libc::ENOENT | libc::ESRCH => return Ok(None),
            error => return Err(io::Error::from_raw_os_error(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_found_by_name_and_number() {
        let root = user_by_name("root").unwrap().expect("root has an entry");
        assert_eq!((root.uid, root.gid), (0, 0));
        assert_eq!(user_by_uid(0).unwrap(), Some(root));
        assert_eq!(group_by_name("root").unwrap(), Some(0));
        assert!(groups_of("root", 0).unwrap().contains(&0));
    }

    #[test]
    fn who_does_not_exist_is_no_error() {
        for name in ["beltway-no-such-user", "with\0zero", ""] {
            assert_eq!(user_by_name(name).unwrap(), None, "{name:?}");
            assert_eq!(group_by_name(name).unwrap(), None, "{name:?}");
        }
        assert_eq!(user_by_uid(u32::MAX - 7).unwrap(), None);
    }
}
