//! The bytes of a connection that were received and not used yet.

use crate::runtime::buf::RecvBuf;

/// Received bytes: usually a shared receive buffer just as it came; gathered in memory of our own when
/// a head does not fit into one, or when the connection is about to wait for long.
pub(super) struct Input(Source);

enum Source {
    Buffer(RecvBuf),
    Gathered { bytes: Vec<u8>, at: usize },
}

impl Input {
    pub(super) fn new(first: RecvBuf) -> Self {
        Self(Source::Buffer(first))
    }

    /// Bytes that came along with others.
    pub(super) fn copied(bytes: &[u8]) -> Self {
        Self(Source::Gathered {
            bytes: bytes.to_vec(),
            at: 0,
        })
    }

    /// What is there.
    pub(super) fn bytes(&self) -> &[u8] {
        match &self.0 {
            Source::Buffer(buffer) => buffer,
            Source::Gathered { bytes, at } => &bytes[*at..],
        }
    }

    /// Uses the first `used` bytes up.
    pub(super) fn consume(&mut self, used: usize) {
        match &mut self.0 {
            Source::Buffer(buffer) => buffer.advance(used),
            Source::Gathered { bytes, at } => {
                *at += used;
                debug_assert!(*at <= bytes.len());
            }
        }
    }

    /// Gives the shared buffer back, keeping what is left of it in memory of our own.
    pub(super) fn detach(&mut self) {
        if let Source::Buffer(buffer) = &self.0 {
            self.0 = Source::Gathered {
                bytes: buffer.to_vec(),
                at: 0,
            };
        }
    }

    /// Adds what came next behind what is there.
    pub(super) fn append(&mut self, next: RecvBuf) {
        if self.bytes().is_empty() {
            self.0 = Source::Buffer(next);
            return;
        }
        self.detach();
        if let Source::Gathered { bytes, at } = &mut self.0 {
            bytes.drain(..*at);
            *at = 0;
            bytes.extend_from_slice(&next);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::buf::BufPool;
    use std::rc::Rc;

    fn received(pool: &Rc<BufPool>, text: &str) -> RecvBuf {
        let (id, len) = pool
            .receive(|bytes| {
                bytes[..text.len()].copy_from_slice(text.as_bytes());
                Ok::<_, ()>(text.len())
            })
            .unwrap()
            .unwrap();
        pool.adopt(id, len)
    }

    #[test]
    fn what_is_left_stays_in_order_and_shared_buffers_go_back() {
        let pool = BufPool::software(4);
        let mut input = Input::new(received(&pool, "abcdef"));
        input.consume(4);
        assert_eq!(input.bytes(), b"ef");
        input.append(received(&pool, "gh"));
        assert_eq!(input.bytes(), b"efgh");
        assert_eq!(pool.available(), 4, "gathered bytes hold no shared buffer");
        input.consume(1);
        input.append(received(&pool, "ij"));
        assert_eq!(input.bytes(), b"fghij");
        input.consume(5);
        input.append(received(&pool, "k"));
        assert_eq!(
            (input.bytes(), pool.available()),
            (&b"k"[..], 3),
            "nothing left: no copy"
        );
        input.detach();
        assert_eq!((input.bytes(), pool.available()), (&b"k"[..], 4));
    }
}
