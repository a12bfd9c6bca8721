//! Cold files past the page cache: blocks read by O_DIRECT into the core's fixed buffers, sent from there.
//!
//! A transfer claims the block that it sends and a few after it, which are read meanwhile. A client that
//! keeps a block waiting gives everything back and gets smaller pieces, read when there is room for them
//! in its socket: so no number of slow clients holds the buffers that all others need. Whatever is wrong
//! with the file shows on the way through the page cache, which is taken then.

use std::collections::VecDeque;
use std::ffi::CString;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use rustix::fs::{OFlags, ResolveFlags};
use rustix::io::Errno;

use super::file::FileSend;
use super::{FilePart, Progress, SendError, Sender, noop};
use crate::runtime::buf::fixed::FixedBuf;
use crate::runtime::direct::admission::DirectMode;
use crate::runtime::direct::{BlockClaim, FileId};
use crate::runtime::engine::syscall::FileKind;
use crate::runtime::executor::Core;
use crate::runtime::fd::Fd;
use crate::runtime::future::Timer;
use crate::runtime::op::{Op, OpenRequest, Output, ZeroCopyLedger};
use crate::util::clock::since_epoch;

/// How long a client may keep a block waiting.
const HOLD: Duration = Duration::from_secs(1);

/// Bytes read at once for a client that kept one waiting.
const PIECE_BYTES: usize = 256 << 10;

/// Pieces that such a client has to take without a wait, to get whole blocks again.
const SMOOTH_PIECES: u32 = 4;

/// A file that was changed this shortly ago isn't known by its times, see `cache::open_files`.
const TICK: Duration = Duration::from_millis(50);

/// What a transfer knows of reading its file past the page cache.
#[derive(Default)]
pub(super) enum Way {
    /// It has not been looked at.
    #[default]
    Unknown,
    /// It is done.
    Direct(Box<Source>),
    /// It isn't, or not any more.
    PageCache,
}

/// A file that is read past the page cache.
pub(super) struct Source {
    /// Opened with O_DIRECT.
    opened: Fd,
    file: FileId,
    /// What offsets and sizes are multiples of.
    align: usize,
    /// Bytes of a block.
    block: usize,
    /// Blocks in order, the first of which is being sent.
    claims: VecDeque<BlockClaim>,
    /// It kept a block waiting, and has taken this many pieces since without.
    slow: Option<u32>,
    /// The zero-copy sends of this transfer.
    ledger: Rc<ZeroCopyLedger>,
}

/// What there is to send next.
enum Next {
    /// These bytes of a buffer.
    Bytes(Rc<FixedBuf>, usize, usize),
    /// Every buffer is needed by others.
    NoRoom,
    /// The file can't be read this way.
    Failed,
}

impl Sender {
    /// Goes on with a file whose next pages aren't in memory, past the page cache, if that is wanted and
    /// possible. Says whether it sent anything; if not, the page cache is to be used for what comes
    /// next.
    ///
    /// # Errors
    /// [`SendError::Broken`] or [`SendError::TooSlow`]; never because of the file.
    pub(super) async fn direct(
        &mut self,
        timer: &mut Timer,
        sending: &mut FileSend,
    ) -> Result<bool, SendError> {
        let of = (&sending.file, sending.direct);
        let way = (&mut sending.way, &mut sending.progress);
        let Some(mut source) = self.take_source(way, of).await else {
            return Ok(false);
        };
        let began = sending.offset;
        while sending.offset < sending.end {
            let asked = self.core.now();
            let next = source.next(&self.core, sending.offset, sending.end).await;
            sending.forgive(asked, self.core.now());
            match next {
                Next::Bytes(bytes, from, to) => {
                    self.send_fixed(timer, sending, &mut source, (bytes, from, to))
                        .await?;
                }
                Next::NoRoom => {
                    source.claims.clear();
                    sending.way = Way::Direct(source);
                    break;
                }
                Next::Failed => {
                    self.core.count_direct(|counts| counts.failed += 1);
                    break;
                }
            }
        }
        Ok(sending.offset > began)
    }

    /// Whether another transfer reads this file past the page cache: then this one joins it. What its look
    /// at the first pages has made the kernel read says nothing of those between.
    pub(super) fn is_read_direct(&self, sending: &FileSend) -> bool {
        sending.direct != DirectMode::Off
            && matches!(sending.way, Way::Unknown)
            && self.core.has_blocks()
            && (self.core.stat(&sending.file)).is_ok_and(|file| self.core.has_blocks_of(&file))
    }

    /// Takes the way of a transfer, of which nothing but the page cache is left, if the file is read past that.
    /// Its client isn't to blame for the time that it takes to find out.
    async fn take_source(
        &self,
        (way, progress): (&mut Way, &mut Option<Progress>),
        (file, mode): (&Fd, DirectMode),
    ) -> Option<Box<Source>> {
        match std::mem::replace(way, Way::PageCache) {
            Way::PageCache => None,
            Way::Direct(source) => Some(source),
            Way::Unknown => {
                let asked = self.core.now();
                let source = self.open_direct(file, mode).await?;
                if let Some(progress) = progress {
                    progress.forgive(asked, self.core.now());
                }
                Some(source)
            }
        }
    }

    /// Opens the file once more, to be read past the page cache; `None` if it is not to be, or can't.
    async fn open_direct(&self, opened: &Fd, mode: DirectMode) -> Option<Box<Source>> {
        let core = &self.core;
        let file = core.stat(opened).ok()?;
        let (seconds, nanoseconds) = file.changed;
        let changed = Duration::new(u64::try_from(seconds).ok()?, nanoseconds);
        let rested = changed.abs_diff(since_epoch()) >= TICK;
        if !(core.wants_direct(mode, file.identity, file.size)).await || !rested {
            return None;
        }
        let path = CString::new(format!("/proc/self/fd/{}", opened.raw())).ok()?;
        let opened = core
            .once(Op::Open(Box::new(OpenRequest {
                dir: None,
                path,
                flags: OFlags::RDONLY | OFlags::DIRECT | OFlags::NOCTTY,
                resolve: ResolveFlags::empty(),
            })))
            .await;
        let usable = match (opened.result, opened.output) {
            (Ok(_), Output::Opened(fd)) => core.direct_alignment(&fd).map(|align| (fd, align)),
            (result, _) => Err(result.err().unwrap_or(Errno::IO)),
        };
        let block = core.fixed_bytes();
        let fits = |align: usize| align.is_power_of_two() && align <= block.min(PIECE_BYTES);
        let (opened, align) = match usable {
            Ok((fd, align)) if fits(align) => (fd, align),
            Ok(_) | Err(Errno::INVAL | Errno::OPNOTSUPP) => {
                core.count_direct(|counts| counts.unsupported += 1);
                return None;
            }
            // No descriptor, no /proc, no permission any more: the one that is open has all of it.
            Err(_) => return None,
        };
        let same = core.stat(&opened).ok()?;
        if same.identity != file.identity || same.kind != FileKind::Regular {
            return None;
        }
        core.count_direct(|counts| counts.transfers += 1);
        Some(Box::new(Source {
            opened,
            file,
            align,
            block,
            claims: VecDeque::new(),
            slow: None,
            ledger: Rc::new(ZeroCopyLedger::to(self.other_machine())),
        }))
    }

    /// As [`Self::direct`], under TLS: what the disk has put into the buffers is encrypted from there.
    ///
    /// # Errors
    /// As [`Self::direct`].
    pub(super) async fn sealed_direct(
        &mut self,
        timer: &mut Timer,
        progress: &mut Option<Progress>,
        (part, way): (&mut FilePart, &mut Way),
        more: bool,
    ) -> Result<bool, SendError> {
        let core = self.core.clone();
        let of = (&part.file, part.direct);
        let Some(mut source) = self.take_source((way, progress), of).await else {
            return Ok(false);
        };
        let (began, end) = (part.offset, part.offset + part.length);
        while part.offset < end {
            let asked = core.now();
            let next = source.next(&core, part.offset, end).await;
            if let Some(progress) = progress {
                progress.forgive(asked, core.now());
            }
            match next {
                Next::Bytes(bytes, from, to) => {
                    self.seal_fixed(timer, progress, &mut source, (bytes, from, to), part, more)
                        .await?;
                }
                Next::NoRoom => {
                    source.claims.clear();
                    *way = Way::Direct(source);
                    break;
                }
                Next::Failed => {
                    core.count_direct(|counts| counts.failed += 1);
                    break;
                }
            }
        }
        Ok(part.offset > began)
    }

    /// Encrypts bytes of a fixed buffer and sends them, all of them unless the client keeps them waiting for too
    /// long: then the buffer is given back, and only what was encrypted is still waited for.
    async fn seal_fixed(
        &mut self,
        timer: &mut Timer,
        progress: &mut Option<Progress>,
        source: &mut Source,
        (bytes, mut from, to): (Rc<FixedBuf>, usize, usize),
        part: &mut FilePart,
        more: bool,
    ) -> Result<(), SendError> {
        let core = self.core.clone();
        let (mut bytes, mut had_share) = (Some(bytes), false);
        let mut hold = Timer::new(&core);
        while let Some(left) = bytes.as_ref().map(|it| &it.bytes()[from..to])
            && !left.is_empty()
        {
            self.secured_share(&mut had_share).await;
            let sealed = self.seal_some(left)?;
            from += sealed;
            part.offset += sealed as u64;
            part.length -= sealed as u64;
            core.bulk_sent(sealed);
            core.count_direct(|counts| counts.sent_bytes += sealed as u64);
            hold.set(core.now() + HOLD);
            let follows = more || part.length > 0;
            {
                let mut delivering = std::pin::pin!(self.deliver(timer, progress, follows));
                std::future::poll_fn(|context| {
                    let delivered = delivering.as_mut().poll(context);
                    if delivered.is_pending() && bytes.is_some() && hold.poll_expired().is_ready() {
                        source.give_back(&core);
                        bytes = None;
                    }
                    delivered
                })
                .await?;
            }
            self.taken += sealed as u64;
        }
        if bytes.is_some() {
            source.went_smoothly();
        }
        Ok(())
    }

    /// The client's address if it is another machine's, as far as that tells.
    fn other_machine(&self) -> Option<IpAddr> {
        let ip = |address: Option<rustix::net::SocketAddrAny>| {
            SocketAddr::try_from(address?)
                .ok()
                .map(|address| address.ip().to_canonical())
        };
        let peer = ip(self.core.peer_address(&self.socket))?;
        let ours = ip(self.core.local_address(&self.socket));
        (!peer.is_loopback() && ours != Some(peer)).then_some(peer)
    }

    /// Sends bytes of a fixed buffer, all of them unless the client keeps them waiting for too long.
    async fn send_fixed(
        &mut self,
        timer: &mut Timer,
        sending: &mut FileSend,
        source: &mut Source,
        (bytes, mut from, to): (Rc<FixedBuf>, usize, usize),
    ) -> Result<(), SendError> {
        let mut waited = false;
        while from < to {
            self.share(sending).await;
            match self
                .send_some(sending, &source.ledger, &bytes, (from, to))
                .await
            {
                Ok(sent) => {
                    self.took(sent as u64)?;
                    self.core.bulk_sent(sent);
                    self.core
                        .count_direct(|counts| counts.sent_bytes += sent as u64);
                    sending.took(sent);
                    from += sent;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    waited = true;
                    let patient = source.slow.is_none();
                    if patient && self.writable_soon(timer, sending).await? {
                        continue;
                    }
                    source.give_back(&self.core);
                    drop(bytes);
                    return self.wait_for_client(timer, sending).await;
                }
                Err(errno) => return Err(SendError::Broken(errno)),
            }
        }
        if !waited {
            source.went_smoothly();
        }
        Ok(())
    }

    /// Sends what the socket takes at once.
    async fn send_some(
        &mut self,
        sending: &FileSend,
        ledger: &Rc<ZeroCopyLedger>,
        bytes: &Rc<FixedBuf>,
        (from, to): (usize, usize),
    ) -> Result<usize, Errno> {
        let more = sending.more || sending.left() > (to - from) as u64;
        let threshold = self
            .core
            .zero_copy_from(bytes.registered().is_some(), ledger)
            // The kernel's TLS makes its records from a copy.
            .filter(|_| self.secured.is_none());
        if threshold.is_some_and(|least| (to - from) as u64 >= least) {
            let mut send = self.core.many(Op::SendZeroCopy {
                socket: Some(self.socket.clone()),
                bytes: Rc::clone(bytes),
                range: (from as u32, to as u32),
                more,
                ledger: Rc::clone(ledger),
            });
            // What follows, the notification, is the slot's business.
            match send.next().await.result {
                Ok(sent) => {
                    self.core.count_direct(|counts| {
                        counts.zerocopy_sends += 1;
                        counts.zerocopy_bytes += u64::from(sent);
                    });
                    return Ok(sent as usize);
                }
                Err(errno) if self.core.zero_copy_failed(errno) => {}
                Err(errno) => return Err(errno),
            }
        }
        let to = to.min(from + self.core.bulk_left());
        let more = more || sending.left() > (to - from) as u64;
        self.core
            .send_now(&self.socket, &bytes.bytes()[from..to], more)
    }

    /// Waits for room in the socket; false when there was none for [`HOLD`].
    async fn writable_soon(
        &self,
        timer: &mut Timer,
        sending: &mut FileSend,
    ) -> Result<bool, SendError> {
        let mut hold = Timer::new(&self.core);
        hold.set(self.core.now() + HOLD);
        let mut ready = self.writable();
        let mut poll = || match std::pin::Pin::new(&mut ready).poll(&mut noop()) {
            Poll::Ready(done) => Poll::Ready(Some(done)),
            Poll::Pending => hold.poll_expired().map(|()| None),
        };
        let done = self
            .patiently(timer, &mut sending.progress, &mut poll)
            .await?;
        sending.had_share = false;
        match done {
            Some(done) => done.result.map(|_| true).map_err(SendError::Broken),
            None => Ok(false),
        }
    }
}

impl Source {
    /// The client has kept a block waiting for too long.
    fn give_back(&mut self, core: &Core) {
        core.count_direct(|counts| counts.given_back += 1);
        self.claims.clear();
        self.slow = Some(0);
    }

    /// It has taken what there was without a wait.
    fn went_smoothly(&mut self) {
        if let Some(smooth) = &mut self.slow {
            *smooth += 1;
            if *smooth >= SMOOTH_PIECES {
                self.slow = None;
            }
        }
    }

    /// Waits for the bytes at `offset`, of which those before `end` are wanted.
    async fn next(&mut self, core: &Core, offset: u64, end: u64) -> Next {
        // For a small part a whole block would be too much.
        if self.slow.is_some() || end - offset <= (self.block / 2) as u64 {
            self.claims.clear();
            return self.piece(core, offset, end).await;
        }
        let block = self.block as u64;
        let index = offset / block;
        while self.claims.front().is_some_and(|it| it.index < index) {
            self.claims.pop_front();
        }
        let last = (end - 1) / block;
        let depth = core.tuning().depth() as u64;
        for ahead in index + self.claims.len() as u64..=last.min(index + depth - 1) {
            let want = self
                .file
                .size
                .min((ahead + 1) * block)
                .saturating_sub(ahead * block);
            let needed = (want as usize, self.align);
            let Some(claim) = core.claim_block(&self.opened, self.file, ahead, needed) else {
                break;
            };
            self.claims.push_back(claim);
        }
        let Some(claim) = self.claims.front() else {
            return Next::NoRoom;
        };
        let read = std::future::poll_fn(|_| claim.poll()).await;
        let start = index * block;
        filled(read, (offset - start) as usize, (end - start) as usize)
    }

    /// Reads a piece for this transfer alone.
    async fn piece(&self, core: &Core, offset: u64, end: u64) -> Next {
        let align = self.align as u64;
        let start = offset / align * align;
        let most = self.block.min(PIECE_BYTES) as u64;
        let wanted = (end - start).min(most);
        let len = wanted.next_multiple_of(align) as usize;
        let Some(buffer) = core.fixed_or_evicted() else {
            return Next::NoRoom;
        };
        let needed = (wanted as usize, self.align);
        let read = core.read_fixed(&self.opened, buffer, (start, len), needed);
        let read = read.await.ok().map(Rc::new);
        filled(read, (offset - start) as usize, wanted as usize)
    }
}

/// What of a buffer is to be sent: from `from` on, and not beyond `end`.
fn filled(read: Option<Rc<FixedBuf>>, from: usize, end: usize) -> Next {
    let Some(bytes) = read else {
        return Next::Failed;
    };
    match bytes.bytes().len().min(end) {
        to if to > from => Next::Bytes(bytes, from, to),
        // The file ends before it should.
        _ => Next::Failed,
    }
}
