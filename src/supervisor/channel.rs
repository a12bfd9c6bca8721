//! The wire between the master and one worker: whole messages with descriptors, over a pair of
//! `SOCK_SEQPACKET` sockets.
//!
//! Packets keep their borders, so there is no half-read message to hand over when the master is
//! replaced by a newer binary: what was sent waits in the socket. Each begins with a magic number, the
//! version of the protocol, and where the message is: behind that, or, when it is long, in a sealed
//! memory file that comes with it. It knows nothing of what the messages mean.

use std::fmt;
use std::io::{self, IoSlice, IoSliceMut, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

/// The version of the messages. A worker of another one says so and ends, and the upgrade rolls back.
pub(super) const VERSION: u16 = 6;

/// First bytes of every packet.
const MAGIC: [u8; 2] = *b"BW";

/// Longest packet in bytes. A longer message goes into a [`blob`] beside it.
const PACKET_MAX: usize = 16 << 10;

/// Bytes in front of a message: magic, version, and where it is.
const HEADER_BYTES: usize = 5;

/// The message follows.
const HERE: u8 = 0;

/// The message is in the first descriptor.
const BESIDE: u8 = 1;

/// Most descriptors of one message: the kernel's `SCM_MAX_FD` is 253 (unix(7)).
pub(super) const DESCRIPTORS_MAX: usize = 250;

/// Room for the descriptors of one message, and for the message itself where it is beside the packet.
const SPACE: usize = rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX + 1));

/// Most bytes of a blob.
const BLOB_MAX: u64 = 256 << 20;

/// One end.
#[derive(Debug)]
pub(super) struct Channel {
    socket: OwnedFd,
}

/// Why nothing could be sent or received.
#[derive(Debug)]
pub(super) enum ChannelError {
    /// The other process has gone, or its end is closed.
    Closed,
    /// The other process takes nothing: its queue is full.
    Full,
    /// A packet is not a message of this version.
    Unknown(String),
    /// The kernel refused.
    System(Errno),
}

impl fmt::Display for ChannelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("the other process has closed the channel"),
            Self::Full => f.write_str("the other process takes no messages"),
            Self::Unknown(what) => write!(f, "not a message of this version: {what}"),
            Self::System(errno) => errno.fmt(f),
        }
    }
}

impl std::error::Error for ChannelError {}

impl From<Errno> for ChannelError {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN => Self::Closed,
            Errno::AGAIN => Self::Full,
            errno => Self::System(errno),
        }
    }
}

fn from_io(error: io::Error) -> ChannelError {
    ChannelError::System(Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

impl Channel {
    /// Both ends: non-blocking, closed on exec.
    ///
    /// # Errors
    /// EMFILE, ENFILE or ENOMEM.
    pub(super) fn pair() -> io::Result<(Self, Self)> {
        let (one, other) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )?;
        Ok((Self { socket: one }, Self { socket: other }))
    }

    /// An end that another process has made.
    ///
    /// # Errors
    /// ENOTSOCK for something else than a packet socket.
    pub(super) fn of(socket: OwnedFd) -> io::Result<Self> {
        let kind = rustix::net::sockopt::socket_type(&socket)?;
        if kind != SocketType::SEQPACKET {
            return Err(Errno::NOTSOCK.into());
        }
        rustix::io::ioctl_fionbio(&socket, true)?;
        Ok(Self { socket })
    }

    /// Gives the socket to another process.
    pub(super) fn into_socket(self) -> OwnedFd {
        self.socket
    }

    /// Sends a message and copies of these descriptors. Never waits.
    ///
    /// # Errors
    /// [`ChannelError::Full`] when the other side doesn't take what was sent before.
    ///
    /// # Panics
    /// With more than [`DESCRIPTORS_MAX`] descriptors: those are to be sent in parts.
    pub(super) fn send(
        &self,
        message: &impl Serialize,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), ChannelError> {
        assert!(descriptors.len() <= DESCRIPTORS_MAX, "split it");
        // It may be a key.
        let mut packet = Zeroizing::new(Vec::with_capacity(PACKET_MAX));
        packet.extend_from_slice(&MAGIC);
        packet.extend_from_slice(&VERSION.to_le_bytes());
        packet.push(HERE);
        serde_json::to_writer(&mut *packet, message)
            .map_err(|error| ChannelError::Unknown(error.to_string()))?;
        let mut beside = None;
        if packet.len() > PACKET_MAX {
            let blob = blob("beltway-message", &packet[HEADER_BYTES..]).map_err(from_io)?;
            packet.truncate(HEADER_BYTES);
            packet[HEADER_BYTES - 1] = BESIDE;
            beside = Some(blob);
        }
        let mut rights: Vec<BorrowedFd<'_>> = Vec::with_capacity(descriptors.len() + 1);
        rights.extend(beside.as_ref().map(AsFd::as_fd));
        rights.extend_from_slice(descriptors);
        let mut space = [MaybeUninit::uninit(); SPACE];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !rights.is_empty() {
            let pushed = control.push(SendAncillaryMessage::ScmRights(&rights));
            debug_assert!(pushed, "there is space for as many");
        }
        loop {
            let flags = SendFlags::NOSIGNAL;
            let parts = [IoSlice::new(&packet)];
            match rustix::net::sendmsg(&self.socket, &parts, &mut control, flags) {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// The next message and its descriptors, closed on exec; `None` when none has come yet.
    ///
    /// # Errors
    /// [`ChannelError::Closed`] after the last one, [`ChannelError::Unknown`] for anything that is
    /// not a whole message of this version.
    pub(super) fn receive<M: DeserializeOwned>(
        &self,
    ) -> Result<Option<(M, Vec<OwnedFd>)>, ChannelError> {
        let mut packet = Zeroizing::new(vec![0; PACKET_MAX]);
        let mut space = [MaybeUninit::uninit(); SPACE];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            let mut parts = [IoSliceMut::new(&mut packet)];
            let flags = RecvFlags::CMSG_CLOEXEC;
            match rustix::net::recvmsg(&self.socket, &mut parts, &mut control, flags) {
                Ok(received) => break received,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(None),
                Err(errno) => return Err(errno.into()),
            }
        };
        let mut descriptors = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                descriptors.extend(rights);
            }
        }
        let cut = ReturnFlags::TRUNC | ReturnFlags::CTRUNC;
        if received.flags.intersects(cut) {
            return Err(ChannelError::Unknown("it was cut short".to_owned()));
        }
        if received.bytes == 0 {
            // A packet of ours is never empty: this is the end.
            return Err(ChannelError::Closed);
        }
        let Some(header) = packet[..received.bytes].first_chunk::<HEADER_BYTES>() else {
            return Err(ChannelError::Unknown("it is too short".to_owned()));
        };
        let version = u16::from_le_bytes([header[2], header[3]]);
        if header[..2] != MAGIC || version != VERSION {
            return Err(ChannelError::Unknown(format!(
                "it has version {version}, and this is {VERSION}"
            )));
        }
        let beside = match header[HEADER_BYTES - 1] {
            HERE => None,
            BESIDE if !descriptors.is_empty() => {
                let content = read_blob(descriptors.remove(0)).map_err(from_io)?;
                Some(Zeroizing::new(content))
            }
            _ => return Err(ChannelError::Unknown("it is nowhere".to_owned())),
        };
        let content = match &beside {
            Some(content) => content.as_slice(),
            None => &packet[HEADER_BYTES..received.bytes],
        };
        let message = serde_json::from_slice(content)
            .map_err(|error| ChannelError::Unknown(error.to_string()))?;
        Ok(Some((message, descriptors)))
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Bytes that a message is too small for: a memory file that nobody can change any more.
///
/// # Errors
/// EMFILE, ENFILE or ENOMEM.
pub(super) fn blob(name: &str, bytes: &[u8]) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut file = std::fs::File::from(rustix::fs::memfd_create(name, flags)?);
    file.write_all(bytes)?;
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    rustix::fs::fcntl_add_seals(&file, seals)?;
    Ok(file.into())
}

/// Reads a blob whole. Its offset, which all who have it share, is neither used nor moved.
///
/// # Errors
/// From pread(2), and EFBIG beyond 256 MiB.
pub(super) fn read_blob(blob: impl AsFd) -> io::Result<Vec<u8>> {
    let length = rustix::fs::fstat(&blob)?.st_size;
    let length = u64::try_from(length).unwrap_or(u64::MAX);
    if length > BLOB_MAX {
        return Err(Errno::FBIG.into());
    }
    let mut bytes = vec![0; usize::try_from(length).map_err(|_| Errno::FBIG)?];
    let mut read = 0;
    while read < bytes.len() {
        match rustix::io::pread(&blob, &mut bytes[read..], read as u64) {
            Ok(0) => break,
            Ok(count) => read += count,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    bytes.truncate(read);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_keep_their_borders_and_bring_their_descriptors() {
        let (master, worker) = Channel::pair().unwrap();
        assert!(worker.receive::<String>().unwrap().is_none());
        let content = blob("test", b"some bytes").unwrap();
        master.send(&"first", &[]).unwrap();
        master
            .send(&"second", &[content.as_fd(), content.as_fd()])
            .unwrap();
        drop(content);
        let (text, descriptors) = worker.receive::<String>().unwrap().unwrap();
        assert_eq!((text.as_str(), descriptors.len()), ("first", 0));
        let (text, descriptors) = worker.receive::<String>().unwrap().unwrap();
        assert_eq!((text.as_str(), descriptors.len()), ("second", 2));
        for descriptor in &descriptors {
            // They share one offset with everybody who has the file, and each reads all of it.
            assert_eq!(read_blob(descriptor).unwrap(), b"some bytes");
            assert_eq!(read_blob(descriptor).unwrap(), b"some bytes");
            let flags = rustix::io::fcntl_getfd(descriptor).unwrap();
            assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
        }
        assert!(worker.receive::<String>().unwrap().is_none());
        drop(master);
        let end = worker.receive::<String>();
        assert!(matches!(end, Err(ChannelError::Closed)), "{end:?}");
    }

    #[test]
    fn a_full_set_of_descriptors_arrives() {
        let (master, worker) = Channel::pair().unwrap();
        let content = blob("test", b"").unwrap();
        let many = vec![content.as_fd(); DESCRIPTORS_MAX];
        master.send(&1, &many).unwrap();
        let (_, descriptors) = worker.receive::<u8>().unwrap().unwrap();
        assert_eq!(descriptors.len(), DESCRIPTORS_MAX);
    }

    #[test]
    fn a_long_message_arrives_whole_with_its_descriptors() {
        let (master, worker) = Channel::pair().unwrap();
        let content = blob("test", b"beside").unwrap();
        for length in [PACKET_MAX - HEADER_BYTES - 2, PACKET_MAX, 1 << 20] {
            let text = "x".repeat(length);
            let many = vec![content.as_fd(); DESCRIPTORS_MAX];
            master.send(&text, &many).unwrap();
            let (read, descriptors) = worker.receive::<String>().unwrap().unwrap();
            assert!(read == text, "{length}");
            assert_eq!(descriptors.len(), DESCRIPTORS_MAX);
            assert_eq!(read_blob(&descriptors[0]).unwrap(), b"beside");
        }
    }

    #[test]
    fn what_is_no_message_is_refused_and_the_next_one_is_read() {
        let (master, worker) = Channel::pair().unwrap();
        let packet = |magic: &[u8], version: u16, rest: &[u8]| {
            [magic, &version.to_le_bytes(), rest].concat()
        };
        for packet in [
            b"x".to_vec(),
            packet(&MAGIC, VERSION + 1, b"\x00\"text\""),
            packet(b"XX", VERSION, b"\x00\"text\""),
            packet(&MAGIC, VERSION, b"\x00{"),
            packet(&MAGIC, VERSION, b"\x00\xff"),
            packet(&MAGIC, VERSION, b"\x01"),
            packet(&MAGIC, VERSION, b"\x07\"text\""),
        ] {
            rustix::net::send(&master, &packet, SendFlags::empty()).unwrap();
        }
        master.send(&"good", &[]).unwrap();
        for _ in 0..7 {
            let read = worker.receive::<String>();
            assert!(matches!(read, Err(ChannelError::Unknown(_))), "{read:?}");
        }
        assert_eq!(worker.receive::<String>().unwrap().unwrap().0, "good");
    }

    #[test]
    fn a_reader_that_takes_nothing_never_blocks_the_writer() {
        let (master, _worker) = Channel::pair().unwrap();
        let text = "x".repeat(8 << 10);
        let refused = (0..1000).find_map(|_| master.send(&text, &[]).err());
        assert!(matches!(refused, Some(ChannelError::Full)), "{refused:?}");
    }

    #[test]
    fn a_blob_can_not_be_changed() {
        let content = blob("test", b"fixed").unwrap();
        assert!(rustix::io::write(&content, b"more").is_err());
        assert!(rustix::fs::ftruncate(&content, 0).is_err());
    }

    #[test]
    fn only_a_packet_socket_is_a_channel() {
        let (stream, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(Channel::of(stream.into()).is_err());
        let (packets, _other) = Channel::pair().unwrap();
        assert!(Channel::of(packets.into_socket()).is_ok());
    }
}
