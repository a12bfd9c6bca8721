//! System call filters (seccomp(2)) and the notifications of what they refuse (seccomp_unotify(2)).
#![allow(unsafe_code)]

use std::io;
use std::mem::{offset_of, size_of};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

/// One instruction of classic BPF.
pub(in crate::supervisor) type Instruction = libc::sock_filter;

/// What a filter is to do beyond its answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::supervisor) enum Listen {
    /// Its answers are all.
    No,
    /// `SECCOMP_RET_USER_NOTIF` asks whoever reads from the descriptor that is given (kernel 5.7 for all
    /// threads at once).
    Yes,
}

/// Installs a filter for every thread of the process, which may gain no privileges from now on.
///
/// # Errors
/// EINVAL or ENOSYS where the kernel has no such filters; EBUSY where somebody listens already; ESRCH
/// where a thread has a filter of its own.
pub(in crate::supervisor) fn install(
    filter: &[Instruction],
    listen: Listen,
) -> io::Result<Option<OwnedFd>> {
    rustix::thread::set_no_new_privs(true)?;
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        filter: filter.as_ptr().cast_mut(),
    };
    let flags = match listen {
        Listen::No => libc::SECCOMP_FILTER_FLAG_TSYNC,
        Listen::Yes => {
            libc::SECCOMP_FILTER_FLAG_TSYNC
                | libc::SECCOMP_FILTER_FLAG_TSYNC_ESRCH
                | libc::SECCOMP_FILTER_FLAG_NEW_LISTENER
        }
    };
    // SAFETY: the program points to the slice, which the kernel only reads; both outlive the call.
    let done = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &raw const program,
        )
    };
    match (done, listen) {
        (0, Listen::No) => Ok(None),
        // The number of a thread that could not be brought under the filter.
        (1.., Listen::No) => Err(io::Error::from_raw_os_error(libc::ESRCH)),
        (0.., Listen::Yes) => {
            let number = RawFd::try_from(done).map_err(|_| io::ErrorKind::InvalidData)?;
            // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
            Ok(Some(unsafe { OwnedFd::from_raw_fd(number) }))
        }
        _ => Err(io::Error::last_os_error()),
    }
}

/// A system call that waits for its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::supervisor) struct Notification {
    /// Names it in the answer.
    pub(in crate::supervisor) id: u64,
    /// Its number, in the table of its architecture.
    pub(in crate::supervisor) number: u32,
    /// Its architecture (`AUDIT_ARCH_*`).
    pub(in crate::supervisor) arch: u32,
}

/// Storage for notifications and answers, of the sizes that the kernel has for them.
pub(in crate::supervisor) struct Storage {
    notification: Vec<u64>,
    response: Vec<u64>,
}

impl Storage {
    /// Asks the kernel for the sizes (kernel 5.0).
    ///
    /// # Errors
    /// EINVAL or ENOSYS where there are no notifications.
    pub(in crate::supervisor) fn new() -> io::Result<Self> {
        let mut sizes = libc::seccomp_notif_sizes {
            seccomp_notif: 0,
            seccomp_notif_resp: 0,
            seccomp_data: 0,
        };
        // SAFETY: the call writes the three sizes, into a struct that outlives it.
        let done = unsafe {
            libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_GET_NOTIF_SIZES,
                0,
                &raw mut sizes,
            )
        };
        if done != 0 {
            return Err(io::Error::last_os_error());
        }
        let words = |kernel: u16, ours: usize| {
            vec![0u64; usize::from(kernel).max(ours).div_ceil(size_of::<u64>())]
        };
        Ok(Self {
            notification: words(sizes.seccomp_notif, size_of::<libc::seccomp_notif>()),
            response: words(
                sizes.seccomp_notif_resp,
                size_of::<libc::seccomp_notif_resp>(),
            ),
        })
    }

    /// Waits for the next notification.
    ///
    /// # Errors
    /// EINTR after a signal and ENOENT when the caller is gone: wait again. Anything else: nothing
    /// more will come.
    pub(in crate::supervisor) fn receive(
        &mut self,
        listener: BorrowedFd<'_>,
    ) -> io::Result<Notification> {
        // The kernel takes zeroed storage alone.
        self.notification.fill(0);
        let place = self.notification.as_mut_ptr();
        // SAFETY: the kernel writes one notification, of at most the size that it has told; the storage
        // has that size, is aligned for it and outlives the call.
        if unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, place) } != 0
        {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the storage has the size and the alignment of the struct, whose fields are numbers.
        let notification = unsafe { ptr::read(place.cast::<libc::seccomp_notif>()) };
        Ok(Notification {
            id: notification.id,
            number: notification.data.nr.cast_unsigned(),
            arch: notification.data.arch,
        })
    }

    /// Ends a system call with an error.
    ///
    /// # Errors
    /// ENOENT when the caller is gone.
    pub(in crate::supervisor) fn refuse(
        &mut self,
        listener: BorrowedFd<'_>,
        id: u64,
        errno: i32,
    ) -> io::Result<()> {
        self.response.fill(0);
        let place = self
            .response
            .as_mut_ptr()
            .cast::<libc::seccomp_notif_resp>();
        let response = libc::seccomp_notif_resp {
            id,
            val: 0,
            error: -errno,
            flags: 0,
        };
        // SAFETY: the storage has at least the size of the struct and its alignment.
        unsafe { place.write(response) };
        // SAFETY: the kernel reads an answer of the size that it has told; the storage has it.
        let done =
            unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, place) };
        if done != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

/// Where a filter finds the number of the system call.
pub(in crate::supervisor) const NUMBER_AT: u32 = offset_of!(libc::seccomp_data, nr) as u32;

/// Where a filter finds the architecture.
pub(in crate::supervisor) const ARCH_AT: u32 = offset_of!(libc::seccomp_data, arch) as u32;

/// Where a filter finds the lower half of an argument, 0 to 5: an `int` of the call is no more.
pub(in crate::supervisor) const fn argument_at(index: usize) -> u32 {
    let low = if cfg!(target_endian = "big") { 4 } else { 0 };
    (offset_of!(libc::seccomp_data, args) + index * size_of::<u64>()) as u32 + low
}

/// Tries to become another program, which doesn't exist, so that the attempt fails whatever is allowed.
pub(in crate::supervisor) fn try_exec() -> io::Error {
    let path = c"/nonexistent/beltway-probe";
    let arguments = [path.as_ptr(), ptr::null()];
    // SAFETY: the path and both lists end with their zeroes and outlive the call.
    unsafe { libc::execve(path.as_ptr(), arguments.as_ptr(), arguments[1..].as_ptr()) };
    io::Error::last_os_error()
}

/// Makes a system call by its number with arguments that mean nothing, for tests.
#[cfg(test)]
pub(in crate::supervisor) fn raw(number: libc::c_long, first: libc::c_long) -> io::Result<i64> {
    // SAFETY: the tests pass numbers that are refused, or that do nothing with these arguments.
    let done = unsafe { libc::syscall(number, first, 0, 0, 0, 0, 0) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(done)
}

/// Asks for the pid by the 32-bit way into a 64-bit kernel, for tests: the result as the register has it.
#[cfg(all(test, target_arch = "x86_64"))]
pub(in crate::supervisor) fn foreign_getpid() -> i32 {
    let result: u64;
    // SAFETY: getpid (20 in that table) takes nothing and changes nothing; the clobbered registers are
    // named.
    unsafe {
        std::arch::asm!(
            "int 0x80",
            inlateout("rax") 20u64 => result,
            lateout("r8") _, lateout("r9") _, lateout("r10") _, lateout("r11") _,
        );
    }
    result as i32
}
