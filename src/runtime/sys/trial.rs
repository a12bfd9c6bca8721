//! Ways of the ring, tried by `beltway tune` outside of any core: each call waits for its end.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use io_uring::squeue::Entry;
use io_uring::{IoUring, cqueue, opcode, types};

/// Have the notification say whether the kernel has copied (`IORING_SEND_ZC_REPORT_USAGE`, kernel 6.2).
const REPORT_USAGE: u16 = 1 << 3;

/// The kernel has copied after all (`IORING_NOTIF_USAGE_ZC_COPIED`), as it does on loopback.
const COPIED: u32 = 1 << 31;

/// Blocks of the disk, as `O_DIRECT` wants addresses and offsets at the most.
const ALIGNMENT: usize = 4096;

/// Bytes of one direct read.
pub(crate) const DIRECT_BYTES: usize = 1 << 20;

/// Sends without a copy (`IORING_OP_SEND_ZC`, kernel 6.0).
pub(crate) struct ZeroCopySend(IoUring);

impl ZeroCopySend {
    /// # Errors
    /// Where there is no io_uring.
    pub(crate) fn new() -> io::Result<Self> {
        IoUring::new(4).map(Self)
    }

    /// Sends as much as the socket takes, and waits until the kernel has let go of the bytes. Gives their
    /// number, and whether they were copied.
    ///
    /// # Errors
    /// From the send, or `EINVAL` where the kernel has no such op.
    pub(crate) fn send(
        &mut self,
        socket: BorrowedFd<'_>,
        bytes: &[u8],
    ) -> io::Result<(usize, bool)> {
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let entry = opcode::SendZc::new(types::Fd(socket.as_raw_fd()), bytes.as_ptr(), length)
            .flags(libc::MSG_NOSIGNAL | libc::MSG_WAITALL)
            .zc_flags(REPORT_USAGE)
            .build();
        // SAFETY: this call returns when the notification says that the kernel reads the bytes no more,
        // or when the send ended without one; until then both arguments are borrowed.
        unsafe { self.0.submission().push(&entry) }.map_err(io::Error::other)?;
        let (mut sent, mut copied, mut waits) = (Ok(0), false, true);
        while waits {
            match self.0.submit_and_wait(1) {
                Err(error) if error.raw_os_error() != Some(libc::EINTR) => {
                    // Nobody knows whether the bytes are still read: there is no way on from here.
                    std::process::abort();
                }
                _ => {}
            }
            for entry in self.0.completion() {
                if cqueue::notif(entry.flags()) {
                    copied = entry.result() as u32 & COPIED != 0;
                } else {
                    sent = result(entry.result());
                }
                waits = cqueue::more(entry.flags());
            }
        }
        Ok((sent?, copied))
    }
}

/// Reads a file past the page cache, several blocks at a time.
pub(crate) struct DirectRead {
    ring: IoUring,
    /// Each with room to be aligned.
    buffers: Vec<Vec<u8>>,
}

impl DirectRead {
    /// With so many blocks of [`DIRECT_BYTES`] at a time, at most 64.
    ///
    /// # Errors
    /// Where there is no io_uring.
    pub(crate) fn new(depth: usize) -> io::Result<Self> {
        let depth = depth.clamp(1, 64);
        Ok(Self {
            ring: IoUring::new(64)?,
            buffers: vec![vec![0; DIRECT_BYTES + ALIGNMENT]; depth],
        })
    }

    /// Reads the whole blocks of the first `length` bytes of a file that was opened with `O_DIRECT`.
    ///
    /// # Errors
    /// The first one from the disk, when all that was asked for has come back.
    pub(crate) fn read(&mut self, file: BorrowedFd<'_>, length: u64) -> io::Result<()> {
        let blocks = length / DIRECT_BYTES as u64;
        let (mut next, mut in_flight, mut failed) = (0, 0_usize, None);
        let mut free: Vec<usize> = (0..self.buffers.len()).collect();
        loop {
            while next < blocks && failed.is_none() {
                let Some(index) = free.pop() else { break };
                let entry = self.entry(file, index, next * DIRECT_BYTES as u64);
                // SAFETY: the buffer lives in `self`, nothing else refers to it until its completion is
                // taken below, and this function doesn't return while a read is in flight.
                unsafe { self.ring.submission().push(&entry) }.map_err(io::Error::other)?;
                (next, in_flight) = (next + 1, in_flight + 1);
            }
            if in_flight == 0 {
                return failed.map_or(Ok(()), Err);
            }
            match self.ring.submit_and_wait(1) {
                Err(error) if error.raw_os_error() != Some(libc::EINTR) => {
                    // Nobody knows whether the buffers are still written to.
                    std::process::abort();
                }
                _ => {}
            }
            for entry in self.ring.completion() {
                in_flight -= 1;
                free.push(entry.user_data() as usize);
                if let Err(error) = result(entry.result()) {
                    failed = Some(error);
                }
            }
        }
    }

    fn entry(&mut self, file: BorrowedFd<'_>, index: usize, offset: u64) -> Entry {
        let buffer = &mut self.buffers[index];
        let skip = buffer.as_ptr().align_offset(ALIGNMENT);
        let aligned = buffer[skip..skip + DIRECT_BYTES].as_mut_ptr();
        opcode::Read::new(types::Fd(file.as_raw_fd()), aligned, DIRECT_BYTES as u32)
            .offset(offset)
            .build()
            .user_data(index as u64)
    }
}

fn result(result: i32) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result))
}
