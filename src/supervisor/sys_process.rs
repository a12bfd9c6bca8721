//! Calls about processes and threads that need `unsafe`, each behind a safe signature with its reason.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::thread::JoinHandleExt as _;
use std::ptr;
use std::thread::JoinHandle;
use std::time::Duration;

/// Puts the program behind `image` in the place of this one (fexecve(3)): same process, same
/// descriptors but those that close on exec, same blocked signals. Unlike `Command::exec` it leaves the
/// signal mask alone, so that a signal that comes meanwhile waits for the new program.
///
/// Returns only the error.
pub(super) fn exec(
    image: BorrowedFd<'_>,
    arguments: &[CString],
    environment: &[CString],
) -> io::Error {
    let pointers = |texts: &[CString]| -> Vec<*const libc::c_char> {
        let texts = texts.iter().map(|text| text.as_ptr());
        texts.chain([ptr::null()]).collect()
    };
    let (arguments, environment) = (pointers(arguments), pointers(environment));
    // SAFETY: both lists end with a null pointer, and they and the strings that they point to live until
    // the call returns, which it does only when nothing was replaced.
    unsafe {
        libc::fexecve(image.as_raw_fd(), arguments.as_ptr(), environment.as_ptr());
    }
    io::Error::last_os_error()
}

/// Lets SIGSEGV and SIGBUS end the process at once, whoever sends them. The handler of the standard
/// library, which is there to name a stack that overflows, survives the first one that a process sends.
pub(super) fn die_of_faults() {
    for signal in [libc::SIGSEGV, libc::SIGBUS] {
        // SAFETY: SIG_DFL is no handler of ours: nothing runs in a signal context.
        unsafe {
            libc::signal(signal, libc::SIG_DFL);
        }
    }
}

/// Takes a descriptor over that the program before this one has left open for us.
///
/// # Errors
/// EBADF for a number that isn't open; the standard streams are refused with it.
pub(super) fn adopt(number: RawFd) -> io::Result<OwnedFd> {
    if number <= libc::STDERR_FILENO {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: the call takes any number and changes nothing.
    if unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, and everything that this program opens closes on exec: so it came through
    // the exec, and the handover, which alone is read for numbers, names each once.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// The processor time that a thread has used (clock_gettime(2)); nothing for one that has ended.
pub(super) fn thread_cpu<T>(thread: &JoinHandle<T>) -> Option<Duration> {
    let mut clock = 0;
    // SAFETY: the handle has not been joined, as it is borrowed, so the thread's id is valid.
    if unsafe { libc::pthread_getcpuclockid(thread.as_pthread_t(), &raw mut clock) } != 0 {
        return None;
    }
    let mut time = MaybeUninit::<libc::timespec>::uninit();
    // SAFETY: the call writes one timespec, for which there is room.
    if unsafe { libc::clock_gettime(clock, time.as_mut_ptr()) } != 0 {
        return None;
    }
    // SAFETY: the call has succeeded, so it has written the time.
    let time = unsafe { time.assume_init() };
    let seconds = u64::try_from(time.tv_sec).ok()?;
    let nanoseconds = u32::try_from(time.tv_nsec).ok()?;
    Some(Duration::new(seconds, nanoseconds))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn the_time_of_another_thread_is_known() {
        let (stop, stopped) = mpsc::sync_channel::<()>(0);
        let busy = std::thread::spawn(move || {
            let mut rounds = 0_u64;
            while stopped.try_recv().is_err() {
                rounds += 1;
            }
            rounds
        });
        while thread_cpu(&busy).unwrap() < Duration::from_millis(2) {
            std::thread::yield_now();
        }
        stop.send(()).unwrap();
        assert!(busy.join().unwrap() > 0);
    }

    #[test]
    fn what_is_no_program_replaces_nothing() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let arguments = [CString::from(c"beltway")];
        let error = exec(std::os::fd::AsFd::as_fd(&file), &arguments, &[]);
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{error}");
    }
}
