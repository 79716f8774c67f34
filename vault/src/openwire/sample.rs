//! Commands made of dice, for the property tests: every structure's table also says how to make
//! one. Knows no protocol beyond the tables.

use bytes::Bytes;

use super::text::{Password, Text};

/// Throws that a property test gives and can shrink; zeros when they are used up, which make the
/// smallest value of everything.
pub(super) struct Dice {
    throws: std::vec::IntoIter<u8>,
    depth: u8,
}

impl Dice {
    pub(super) fn new(throws: Vec<u8>) -> Self {
        Self { throws: throws.into_iter(), depth: 0 }
    }

    pub(super) fn throw(&mut self) -> u8 {
        self.throws.next().unwrap_or_default()
    }

    fn some(&mut self, number: usize) -> Vec<u8> {
        (0..number).map(|_| self.throw()).collect()
    }

    /// A structure inside another one: not too deep, or the decoder would rightly refuse it.
    pub(super) fn deeper<T>(&mut self, make: impl FnOnce(&mut Self) -> T) -> Option<T> {
        if self.depth == 2 {
            return None;
        }
        self.depth += 1;
        let made = make(self);
        self.depth -= 1;
        Some(made)
    }
}

/// A value made of dice.
pub(super) trait Sample {
    fn sample(dice: &mut Dice) -> Self;
}

impl Sample for bool {
    fn sample(dice: &mut Dice) -> Self {
        dice.throw() % 2 == 1
    }
}

macro_rules! number_samples {
    ($($number:ty),*) => {$(
        impl Sample for $number {
            fn sample(dice: &mut Dice) -> Self {
                let mut bytes = [0; size_of::<$number>()];
                bytes.fill_with(|| dice.throw());
                Self::from_be_bytes(bytes)
            }
        }
    )*};
}

number_samples! { i8, i32, i64 }

impl Sample for Text {
    fn sample(dice: &mut Dice) -> Self {
        let length = usize::from(dice.throw() % 8);
        Text::from_bytes(dice.some(length).into()).unwrap_or_default()
    }
}

impl Sample for Bytes {
    fn sample(dice: &mut Dice) -> Self {
        // Now and then so long that it is sent from where it lies.
        match dice.throw() {
            255 => Bytes::from(vec![7; 20_000]),
            length => dice.some(usize::from(length % 32)).into(),
        }
    }
}

impl Sample for Password {
    fn sample(dice: &mut Dice) -> Self {
        Self::new(Sample::sample(dice))
    }
}

impl<T: Sample> Sample for Option<T> {
    fn sample(dice: &mut Dice) -> Self {
        if bool::sample(dice) { dice.deeper(T::sample) } else { None }
    }
}

impl<T: Sample> Sample for Vec<T> {
    fn sample(dice: &mut Dice) -> Self {
        (0..dice.throw() % 4).map(|_| T::sample(dice)).collect()
    }
}

impl<T: Sample> Sample for Box<T> {
    fn sample(dice: &mut Dice) -> Self {
        Box::new(T::sample(dice))
    }
}
