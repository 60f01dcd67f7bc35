//! Regular and elastic work, and byte counts of both.

use std::fmt;
use std::ops::{AddAssign, SubAssign};

/// What kind of work an entry is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// What somebody waits for: it goes at the pace of a quorum.
    #[default]
    Regular,
    /// Background work, and catching up: it goes at the pace of the slowest live replica, and starves first.
    Elastic,
}

impl Class {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Regular, Self::Elastic];

    /// The name in metrics, documents and `pontoon-class`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Regular => "regular",
            Self::Elastic => "elastic",
        }
    }

    /// The class of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|class| class.name() == name)
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Something for each class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PerClass<T> {
    /// For regular work.
    pub regular: T,
    /// For elastic work.
    pub elastic: T,
}

impl<T> PerClass<T> {
    /// The one of `class`.
    pub const fn get(&self, class: Class) -> &T {
        match class {
            Class::Regular => &self.regular,
            Class::Elastic => &self.elastic,
        }
    }

    /// The one of `class`, to be changed.
    pub const fn get_mut(&mut self, class: Class) -> &mut T {
        match class {
            Class::Regular => &mut self.regular,
            Class::Elastic => &mut self.elastic,
        }
    }
}

/// Bytes of each class.
pub type Bytes = PerClass<u64>;

impl Bytes {
    /// Nothing.
    pub const ZERO: Self = Self { regular: 0, elastic: 0 };

    /// So many of one class.
    #[must_use]
    pub fn of(class: Class, bytes: u64) -> Self {
        let mut of = Self::ZERO;
        *of.get_mut(class) = bytes;
        of
    }

    /// Both together.
    #[must_use]
    pub const fn total(self) -> u64 {
        self.regular.saturating_add(self.elastic)
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_zero(self) -> bool {
        self.regular == 0 && self.elastic == 0
    }
}

impl AddAssign for Bytes {
    fn add_assign(&mut self, more: Self) {
        self.regular += more.regular;
        self.elastic += more.elastic;
    }
}

impl SubAssign for Bytes {
    fn sub_assign(&mut self, less: Self) {
        self.regular -= less.regular;
        self.elastic -= less.elastic;
    }
}
