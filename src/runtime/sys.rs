//! The few calls that need `unsafe`, each behind a safe signature with its reason.
#![allow(unsafe_code)]

pub(crate) mod heap;
pub(crate) mod kernel_tls;
pub(crate) mod trial;

use rustix::io::Errno;
use socket2::{SockAddr, SockRef};

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::OnceLock;
use std::time::Duration;

use super::executor::ThreadUse;

/// Takes ownership of a descriptor that the kernel has just made for us: the result of an accept or
/// an open that nobody else has seen.
pub(crate) fn adopt(number: RawFd) -> OwnedFd {
    assert!(number >= 0, "a result that is an error is no descriptor");
    // SAFETY: the callers pass the result of a completed accept or open exactly once.
    unsafe { OwnedFd::from_raw_fd(number) }
}

/// Borrows a descriptor whose owner is a slot: it outlives the job that uses it.
pub(crate) fn borrow(number: RawFd) -> BorrowedFd<'static> {
    assert!(number >= 0, "a slot holds descriptors, not errors");
    // SAFETY: a slot keeps its `Fd` until the terminal completion of its op, which for a helper's job
    // is taken after the job has ended.
    unsafe { BorrowedFd::borrow_raw(number) }
}

/// Bytes in the socket's send queue that the peer has not acknowledged (`SIOCOUTQ`, tcp(7)).
pub(crate) fn unsent(socket: BorrowedFd<'_>) -> Option<u64> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the request writes one int to the given address, which outlives the call.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    (done == 0).then(|| u64::try_from(bytes).unwrap_or(0))
}

/// Asks for a connection (connect(2)); `EINPROGRESS` when the answer is still to come.
pub(crate) fn connect(socket: BorrowedFd<'_>, address: &SockAddr) -> Result<(), Errno> {
    let done = SockRef::from(&socket).connect(address);
    done.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

/// Lets a bind to a local address leave the choice of the port to the connect, which takes one that is
/// free for this peer (`IP_BIND_ADDRESS_NO_PORT`, ip(7), kernel 4.2). Without it the ports of the
/// machine are the bound for the connections to all peers together.
pub(crate) fn bind_without_port(socket: BorrowedFd<'_>) {
    let on: libc::c_int = 1;
    // SAFETY: the option reads one int at the given address, which outlives the call.
    let _ = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
}

/// What this thread has used of its processor (getrusage(2)).
pub(crate) fn thread_use() -> Option<ThreadUse> {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::uninit();
    // SAFETY: the call fills in the structure, which outlives it, or fails.
    if unsafe { libc::getrusage(libc::RUSAGE_THREAD, usage.as_mut_ptr()) } != 0 {
        return None;
    }
    // SAFETY: it did not fail.
    let usage = unsafe { usage.assume_init() };
    let time = |time: libc::timeval| {
        let seconds = Duration::from_secs(time.tv_sec.unsigned_abs());
        seconds + Duration::from_micros(time.tv_usec.unsigned_abs())
    };
    Some(ThreadUse {
        time: time(usage.ru_utime) + time(usage.ru_stime),
        waits: usage.ru_nvcsw.unsigned_abs(),
    })
}

/// Longest reach of [`read_reaching`].
pub(crate) const REACH_MAX: usize = 4 << 20;

/// Asks for `reach` bytes from the page cache, at most [`REACH_MAX`], and takes one of them (preadv2(2) with
/// `RWF_NOWAIT`). The others have no place to go to, so they cost no copy; but the kernel sees how much
/// is wanted, and reads ahead accordingly.
///
/// # Errors
/// `EAGAIN` when the first byte isn't in memory.
pub(crate) fn read_reaching(
    file: BorrowedFd<'_>,
    offset: u64,
    reach: usize,
) -> Result<usize, Errno> {
    static NO_PLACE: OnceLock<Option<usize>> = OnceLock::new();
    let no_place = *NO_PLACE.get_or_init(|| {
        let (protection, flags) = (
            rustix::mm::ProtFlags::empty(),
            rustix::mm::MapFlags::PRIVATE | rustix::mm::MapFlags::NORESERVE,
        );
        // SAFETY: a new mapping at a place of the kernel's choice. Nothing in this process may read or
        // write it, it is never unmapped, and no reference to it is ever made.
        let made = unsafe {
            rustix::mm::mmap_anonymous(std::ptr::null_mut(), REACH_MAX, protection, flags)
        };
        made.ok().map(|at| at as usize)
    });
    let mut byte = 0u8;
    let slices = [
        libc::iovec {
            iov_base: (&raw mut byte).cast(),
            iov_len: 1,
        },
        libc::iovec {
            iov_base: no_place.unwrap_or(0) as *mut libc::c_void,
            iov_len: reach.clamp(1, REACH_MAX) - 1,
        },
    ];
    let count = if no_place.is_some() { 2 } else { 1 };
    let offset = libc::off_t::try_from(offset).map_err(|_| Errno::INVAL)?;
    // SAFETY: both slices live through the call. The kernel writes one byte to the first. It finds that
    // the second, which is mapped for all of its length, may not be written, and ends there.
    let read = unsafe {
        libc::preadv2(
            file.as_raw_fd(),
            slices.as_ptr(),
            count,
            offset,
            libc::RWF_NOWAIT,
        )
    };
    counted(read)
}

/// How many bytes a call of libc has moved; below 0 it has failed, and nothing was called since.
fn counted(bytes: isize) -> Result<usize, Errno> {
    usize::try_from(bytes).map_err(|_| {
        let error = std::io::Error::last_os_error();
        Errno::from_io_error(&error).unwrap_or(Errno::IO)
    })
}

/// Reads at most `len` bytes of a file that are in memory behind what is in `into` (preadv2(2) with
/// `RWF_NOWAIT`), without filling that room with zeros before.
///
/// # Errors
/// `EAGAIN` when the first byte isn't in memory; `EOPNOTSUPP` where the file system can't say.
pub(crate) fn append_resident(
    file: BorrowedFd<'_>,
    into: &mut Vec<u8>,
    len: usize,
    offset: u64,
) -> Result<usize, Errno> {
    into.reserve(len);
    let room = &mut into.spare_capacity_mut()[..len];
    let slice = libc::iovec {
        iov_base: room.as_mut_ptr().cast(),
        iov_len: room.len(),
    };
    let offset = libc::off_t::try_from(offset).map_err(|_| Errno::INVAL)?;
    // SAFETY: the slice is the room behind the vector's content, which lives through the call and to which
    // the kernel only writes.
    let read = unsafe {
        libc::preadv2(
            file.as_raw_fd(),
            &raw const slice,
            1,
            offset,
            libc::RWF_NOWAIT,
        )
    };
    let read = counted(read)?;
    assert!(read <= len, "more than there was room for");
    // SAFETY: the kernel has written so many bytes behind the content, within the capacity.
    unsafe { into.set_len(into.len() + read) };
    Ok(read)
}
