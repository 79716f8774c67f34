//! The two tables' grammar: from a list of fields in the protocol's order it makes a structure
//! and both directions of its wire form, so that a reviewer compares the list and nothing else.
//!
//! `Name = number { field: Type, … }`; the field's type is its form: `Text` or a structure must be
//! there, `Option<…>` may be null. `since V11` marks a field that older versions do not have.

/// Structures with one number each.
macro_rules! structures {
    ($(
        $(#[$about:meta])*
        $name:ident = $code:literal { $( $(#[$note:meta])* $field:ident: $type:ty $(, since $since:ident)? ; )* }
    )*) => {$(
        $(#[$about])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct $name { $( $(#[$note])* pub $field: $type, )* }

        impl $crate::openwire::wire::Structure for $name {
            fn code(&self) -> u8 {
                $code
            }

            fn read_fields(
                code: u8,
                reader: &mut $crate::openwire::wire::Reader,
            ) -> Result<Self, $crate::openwire::fault::DecodeError> {
                $crate::openwire::types::expect($code, code)?;
                Ok(Self { $(
                    $field: $crate::openwire::table::read_field!(reader, $($since)?)
                        .map_err(|error| error.within(stringify!($name), stringify!($field)))?,
                )* })
            }

            fn write_fields(&self, writer: &mut $crate::openwire::wire::Writer) {
                $( $crate::openwire::table::write_field!(writer, &self.$field, $($since)?); )*
            }
        }

        #[cfg(test)]
        impl $crate::openwire::sample::Sample for $name {
            fn sample(dice: &mut $crate::openwire::sample::Dice) -> Self {
                Self { $( $field: $crate::openwire::sample::Sample::sample(dice), )* }
            }
        }
    )*};
}

/// Reads a field, or takes its default where the version has none.
macro_rules! read_field {
    ($reader:ident,) => {
        $crate::openwire::wire::Wire::read($reader)
    };
    ($reader:ident, $since:ident) => {
        if $reader.version() >= $crate::openwire::Version::$since {
            $crate::openwire::wire::Wire::read($reader)
        } else {
            Ok(Default::default())
        }
    };
}

/// Writes a field if the version has it.
macro_rules! write_field {
    ($writer:ident, $value:expr,) => {
        $crate::openwire::wire::Wire::write($value, $writer)
    };
    ($writer:ident, $value:expr, $since:ident) => {
        if $writer.version() >= $crate::openwire::Version::$since {
            $crate::openwire::wire::Wire::write($value, $writer)
        }
    };
}

/// A byte with a meaning for each value that it may have.
macro_rules! byte_values {
    ($(
        $(#[$about:meta])*
        $name:ident { $( $(#[$note:meta])* $value:ident = $byte:literal, )* }
    )*) => {$(
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum $name { $( $(#[$note])* $value = $byte, )* }

        impl $crate::openwire::wire::Wire for $name {
            fn read(
                reader: &mut $crate::openwire::wire::Reader,
            ) -> Result<Self, $crate::openwire::fault::DecodeError> {
                match <u8 as $crate::openwire::wire::Wire>::read(reader)? {
                    $( $byte => Ok(Self::$value), )*
                    byte => Err($crate::openwire::fault::Fault::UnknownValue(byte).into()),
                }
            }

            fn write(&self, writer: &mut $crate::openwire::wire::Writer) {
                (*self as u8).write(writer);
            }
        }

        #[cfg(test)]
        impl $crate::openwire::sample::Sample for $name {
            fn sample(dice: &mut $crate::openwire::sample::Dice) -> Self {
                let all = [$( Self::$value ),*];
                all[usize::from(dice.throw()) % all.len()]
            }
        }
    )*};
}

pub(super) use {byte_values, read_field, structures, write_field};
