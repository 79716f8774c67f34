//! A growing array that never moves what it holds. Knows numbers and places; must not know what
//! they mean. A `Vec` of millions copies itself at each doubling: a pause, and for a while twice
//! the memory, which the allocator then keeps.

/// Bytes of a piece: a size of which allocators lose nothing to rounding.
const CHUNK: usize = 32 << 10;

/// As a `Vec`, in pieces of one size. Memory that was needed once is kept for the next time.
#[derive(Debug)]
pub(super) struct Chunks<T> {
    chunks: Vec<Vec<T>>,
    len: usize,
}

impl<T: Copy> Chunks<T> {
    /// So many fit into a piece.
    const EACH: usize = CHUNK / size_of::<T>();

    pub(super) fn new() -> Self {
        Self { chunks: Vec::new(), len: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn push(&mut self, value: T) {
        let chunk = self.len / Self::EACH;
        if chunk == self.chunks.len() {
            self.chunks.push(Vec::with_capacity(Self::EACH));
        }
        self.chunks[chunk].push(value);
        self.len += 1;
    }

    pub(super) fn pop(&mut self) -> Option<T> {
        self.len = self.len.checked_sub(1)?;
        self.chunks[self.len / Self::EACH].pop()
    }

    /// Where `place` is one: who keeps numbers keeps them right, or a test finds it.
    pub(super) fn at(&self, place: usize) -> &T {
        &self.chunks[place / Self::EACH][place % Self::EACH]
    }

    pub(super) fn at_mut(&mut self, place: usize) -> &mut T {
        &mut self.chunks[place / Self::EACH][place % Self::EACH]
    }

    pub(super) fn first(&self) -> Option<T> {
        self.chunks.first()?.first().copied()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.chunks.iter().flatten()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.chunks.iter_mut().flatten()
    }

    /// Bytes allocated.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.chunks.len() * CHUNK + self.chunks.capacity() * size_of::<Vec<T>>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn chunks_hold_what_a_vec_holds(steps in proptest::collection::vec((0..12_000_u32, 0..9000_u32), 1..6)) {
            let (mut chunks, mut plain) = (Chunks::new(), Vec::new());
            for (pushed, popped) in steps {
                for number in 0..pushed {
                    chunks.push(number);
                    plain.push(number);
                }
                for _ in 0..popped {
                    prop_assert_eq!(chunks.pop(), plain.pop());
                }
                prop_assert_eq!(chunks.len(), plain.len());
                prop_assert_eq!(chunks.first(), plain.first().copied());
                prop_assert!(chunks.iter().eq(plain.iter()));
                if let Some(last) = plain.len().checked_sub(1) {
                    *chunks.at_mut(last) = 7;
                    plain[last] = 7;
                    prop_assert_eq!(chunks.at(last), &7);
                }
            }
        }
    }
}
