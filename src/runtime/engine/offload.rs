//! File ops for an engine without asynchronous file I/O: they run on a helper thread.

use std::any::Any;
use std::num::NonZeroU64;
use std::os::fd::{IntoRawFd, OwnedFd};

use rustix::fs::{Advice, CWD, Mode, OFlags, fadvise, openat2};
use rustix::io::Errno;

use crate::runtime::buf::fixed::FixedMemory;
use crate::runtime::op::{Job, Op, OpenRequest};
use crate::runtime::sys;

type Opened = Result<OwnedFd, Errno>;
type ReadDone = (Vec<u8>, Result<usize, Errno>);
type FixedDone = (Box<FixedMemory>, Result<usize, Errno>);
type Advised = Result<(), Errno>;

/// The job of an op that may block; `None` for one that has no such form.
///
/// The helper borrows descriptors by number: the slot holds them until the job's answer is taken.
pub(crate) fn job(op: &mut Op) -> Option<Job> {
    match op {
        Op::Open(request) => Some(open(request)),
        Op::Read {
            file,
            data,
            len,
            offset,
        } => {
            let (file, len, offset) = (file.raw(), *len, *offset);
            let mut data = std::mem::take(data);
            Some(Box::new(move || {
                data.resize(len, 0);
                let read = rustix::io::pread(sys::borrow(file), &mut data[..], offset);
                let done: ReadDone = (data, read);
                Box::new(done)
            }))
        }
        Op::ReadFixed {
            file,
            buffer,
            at,
            len,
            offset,
        } => {
            let (file, offset) = (file.raw(), *offset);
            let (at, end) = (*at as usize, (*at + *len) as usize);
            let mut memory = buffer.lend()?;
            Some(Box::new(move || {
                let room = &mut memory.room()[at..end];
                let read = rustix::io::pread(sys::borrow(file), room, offset);
                let done: FixedDone = (memory, read);
                Box::new(done)
            }))
        }
        Op::WillNeed { file, offset, len } => {
            let (file, offset, len) = (file.raw(), *offset, NonZeroU64::new(u64::from(*len)));
            Some(Box::new(move || {
                let advised: Advised = match len {
                    len @ Some(_) => fadvise(sys::borrow(file), offset, len, Advice::WillNeed),
                    // A length of 0 would mean the whole file.
                    None => Ok(()),
                };
                Box::new(advised)
            }))
        }
        _ => None,
    }
}

fn open(request: &OpenRequest) -> Job {
    let dir = request.dir.as_ref().map(|dir| dir.raw());
    let (path, resolve) = (request.path.clone(), request.resolve);
    let flags = request.flags | OFlags::CLOEXEC;
    Box::new(move || {
        let dir = dir.map_or(CWD, sys::borrow);
        let opened: Opened = openat2(dir, &path, flags, Mode::empty(), resolve);
        Box::new(opened)
    })
}

/// Puts the answer of a job back into its op and gives the result as a completion would have it.
pub(crate) fn finish(op: &mut Op, answer: Box<dyn Any + Send>) -> i32 {
    match op {
        Op::Open(_) => match answer.downcast::<Opened>().map(|opened| *opened) {
            Ok(Ok(fd)) => fd.into_raw_fd(),
            Ok(Err(errno)) => -errno.raw_os_error(),
            Err(_) => -Errno::CANCELED.raw_os_error(),
        },
        Op::Read { data, .. } => match answer.downcast::<ReadDone>().map(|done| *done) {
            Ok((bytes, read)) => {
                *data = bytes;
                as_result(read)
            }
            Err(_) => -Errno::CANCELED.raw_os_error(),
        },
        Op::ReadFixed { buffer, .. } => match answer.downcast::<FixedDone>().map(|done| *done) {
            Ok((memory, read)) => {
                buffer.give_back(memory);
                as_result(read)
            }
            Err(_) => -Errno::CANCELED.raw_os_error(),
        },
        Op::WillNeed { .. } => match answer.downcast::<Advised>().map(|done| *done) {
            Ok(Ok(())) => 0,
            Ok(Err(errno)) => -errno.raw_os_error(),
            Err(_) => -Errno::CANCELED.raw_os_error(),
        },
        _ => -Errno::INVAL.raw_os_error(),
    }
}

fn as_result(read: Result<usize, Errno>) -> i32 {
    match read {
        Ok(len) => i32::try_from(len).unwrap_or(i32::MAX),
        Err(errno) => -errno.raw_os_error(),
    }
}
