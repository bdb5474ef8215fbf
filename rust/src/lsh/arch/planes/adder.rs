//! Distances as sums of table entries, by a tree of full adders.

// Single-letter names follow the convention for adders.
#![allow(clippy::many_single_char_names)]

use super::layout::VARIANTS;
use super::plane::{Code, Plane};

/// Bit planes of the largest distance, 512.
pub(super) const PLANES: usize = 10;

/// Returns the bit planes of the distances of a block's behaviours.
///
/// # Safety
/// As for [`Plane`]; the table has `TRIPLES` triples, and there are as many codes by [`Plane::encode`] plus
/// three more.
#[inline(always)]
pub(super) unsafe fn distances<P: Plane, const TRIPLES: usize>(
    table: &[u64],
    codes: &[Code],
) -> [P; PLANES] {
    debug_assert!(table.len() == TRIPLES * VARIANTS * P::WORDS && codes.len() >= TRIPLES + 3);
    // SAFETY: by the contract of this function.
    unsafe {
        let mut adder = Adder::<P> {
            table: table.as_ptr(),
            codes: codes.as_ptr(),
            sums: [P::zeros(); 6],
        };
        // The rest is added up column by column, from the lowest. Every width has a sum of its own, in
        // which all planes are named variables: the compiler keeps those in registers.
        let none = P::zeros();
        match TRIPLES {
            22 => {
                let (x, y, z) = (adder.take_16(), adder.take_4(), adder.take_2());
                let s = adder.sums;
                let (p1, [c, d]) = add_4([s[1], z[0], z[1], z[2]]);
                let (p2, [c, d, e]) = add_6([s[2], y[0], y[1], y[2], c, d]);
                let (p3, [c, d]) = add_4([s[3], c, d, e]);
                let (p4, [c, d]) = add_5([x[0], x[1], x[2], c, d]);
                let (p5, p6) = half(c, d);
                [s[0], p1, p2, p3, p4, p5, p6, none, none, none]
            }
            43 => {
                let (w, x, y) = (adder.take_32(), adder.take_8(), adder.take_2());
                let (low, high) = adder.take_1();
                let s = adder.sums;
                let (p0, c) = half(s[0], low);
                let (p1, [c, d, e]) = add_6([s[1], y[0], y[1], y[2], high, c]);
                let (p2, [c, d]) = add_4([s[2], c, d, e]);
                let (p3, [c, d, e]) = add_6([s[3], x[0], x[1], x[2], c, d]);
                let (p4, [c, d]) = add_4([s[4], c, d, e]);
                let (p5, [c, d]) = add_5([w[0], w[1], w[2], c, d]);
                let (p6, p7) = half(c, d);
                [p0, p1, p2, p3, p4, p5, p6, p7, none, none]
            }
            86 => {
                let (w, x) = (adder.take_64(), adder.take_16());
                let (y, z) = (adder.take_4(), adder.take_2());
                let s = adder.sums;
                let (p1, [c, d]) = add_4([s[1], z[0], z[1], z[2]]);
                let (p2, [c, d, e]) = add_6([s[2], y[0], y[1], y[2], c, d]);
                let (p3, [c, d]) = add_4([s[3], c, d, e]);
                let (p4, [c, d, e]) = add_6([s[4], x[0], x[1], x[2], c, d]);
                let (p5, [c, d]) = add_4([s[5], c, d, e]);
                let (p6, [c, d]) = add_5([w[0], w[1], w[2], c, d]);
                let (p7, p8) = half(c, d);
                [s[0], p1, p2, p3, p4, p5, p6, p7, p8, none]
            }
            171 => {
                let (v, w, x) = (adder.take_64(), adder.take_64(), adder.take_32());
                let (y, z) = (adder.take_8(), adder.take_2());
                let (low, high) = adder.take_1();
                let s = adder.sums;
                let (p0, c) = half(s[0], low);
                let (p1, [c, d, e]) = add_6([s[1], z[0], z[1], z[2], high, c]);
                let (p2, [c, d]) = add_4([s[2], c, d, e]);
                let (p3, [c, d, e]) = add_6([s[3], y[0], y[1], y[2], c, d]);
                let (p4, [c, d]) = add_4([s[4], c, d, e]);
                let (p5, [c, d, e]) = add_6([s[5], x[0], x[1], x[2], c, d]);
                let (p6, [f, g]) = add_5([v[0], v[1], v[2], w[0], w[1]]);
                let (p6, [c, d]) = add_5([p6, w[2], c, d, e]);
                let (p7, [c, d]) = add_4([c, d, f, g]);
                let (p8, p9) = half(c, d);
                [p0, p1, p2, p3, p4, p5, p6, p7, p8, p9]
            }
            _ => unreachable!("no signatures have {TRIPLES} triples"),
        }
    }
}

/// Returns sum and carry of two bits.
#[inline(always)]
unsafe fn half<P: Plane>(a: P, b: P) -> (P, P) {
    // SAFETY: passed on.
    unsafe { (P::xor(a, b), P::and(a, b)) }
}

/// Returns sum and carry of three bits.
#[inline(always)]
unsafe fn full<P: Plane>(a: P, b: P, c: P) -> (P, P) {
    // SAFETY: passed on.
    unsafe { (P::sum(a, b, c), P::carry(a, b, c)) }
}

/// Returns sum and carries of four bits.
#[inline(always)]
unsafe fn add_4<P: Plane>([a, b, c, d]: [P; 4]) -> (P, [P; 2]) {
    // SAFETY: passed on.
    unsafe {
        let (sum, first) = full(a, b, c);
        let (sum, second) = half(sum, d);
        (sum, [first, second])
    }
}

/// Returns sum and carries of five bits.
#[inline(always)]
unsafe fn add_5<P: Plane>([a, b, c, d, e]: [P; 5]) -> (P, [P; 2]) {
    // SAFETY: passed on.
    unsafe {
        let (sum, first) = full(a, b, c);
        let (sum, second) = full(sum, d, e);
        (sum, [first, second])
    }
}

/// Returns sum and carries of six bits.
#[inline(always)]
unsafe fn add_6<P: Plane>([a, b, c, d, e, f]: [P; 6]) -> (P, [P; 3]) {
    // SAFETY: passed on.
    unsafe {
        let (sum, [first, second]) = add_5([a, b, c, d, e]);
        let (sum, third) = half(sum, f);
        (sum, [first, second, third])
    }
}

/// Tree of adders: running sums of each weight, and three carries of weight `n` for every `n` triples.
///
/// A running sum enters one adder for every two subtrees, as the last operand, so that other work is
/// available while it is computed.
struct Adder<P> {
    table: *const u64,
    codes: *const Code,
    sums: [P; 6],
}

/// Adds twice `$half` triples: six planes and the running sum make three carries.
macro_rules! take {
    ($name:ident, $half:ident, $weight:literal) => {
        #[inline(always)]
        unsafe fn $name(&mut self) -> [P; 3] {
            // SAFETY: passed on.
            unsafe {
                let [a, b, c] = self.$half();
                let (first, high) = full(a, b, c);
                let [a, b, c] = self.$half();
                let (second, higher) = full(a, b, c);
                [high, higher, self.add($weight, first, second)]
            }
        }
    };
}

impl<P: Plane> Adder<P> {
    /// Returns the two bits of the next triple, whose code is lowest in `codes`, and removes the code.
    #[inline(always)]
    unsafe fn next(&mut self, codes: &mut u64) -> (P, P) {
        let (low, high) = (*codes as u8, (*codes >> 8) as u8);
        *codes >>= 16;
        // SAFETY: by the contract of `distances` the code selects entries of the triple, and there is one
        // more.
        unsafe {
            let planes = (
                P::load(self.table.add(low.into())),
                P::load(self.table.add(high.into())),
            );
            self.table = self.table.add(VARIANTS * P::WORDS);
            planes
        }
    }

    /// Returns the next `N` codes, at most 4, in one load: the kernel is bound by loads.
    #[inline(always)]
    unsafe fn codes<const N: usize>(&mut self) -> u64 {
        // SAFETY: by the contract of `distances` there are as many more, and 4 can be read at any of them.
        unsafe {
            let codes = self.codes.cast::<u64>().read_unaligned();
            self.codes = self.codes.add(N);
            codes
        }
    }

    /// Adds two planes to a running sum, and returns the carry.
    #[inline(always)]
    unsafe fn add(&mut self, weight: usize, a: P, b: P) -> P {
        // SAFETY: passed on.
        let (sum, carry) = unsafe { full(a, b, self.sums[weight]) };
        self.sums[weight] = sum;
        carry
    }

    #[inline(always)]
    unsafe fn take_1(&mut self) -> (P, P) {
        // SAFETY: passed on.
        unsafe {
            let mut codes = self.codes::<1>();
            self.next(&mut codes)
        }
    }

    #[inline(always)]
    unsafe fn take_2(&mut self) -> [P; 3] {
        // SAFETY: passed on.
        unsafe {
            let mut codes = self.codes::<2>();
            let (a, b) = (self.next(&mut codes), self.next(&mut codes));
            [a.1, b.1, self.add(0, a.0, b.0)]
        }
    }

    #[inline(always)]
    unsafe fn take_4(&mut self) -> [P; 3] {
        // SAFETY: passed on.
        unsafe {
            let mut codes = self.codes::<4>();
            let [a, b, c] = [
                self.next(&mut codes),
                self.next(&mut codes),
                self.next(&mut codes),
            ];
            let (low, carry) = full(a.0, b.0, c.0);
            let (first, high) = full(a.1, b.1, c.1);
            let d = self.next(&mut codes);
            let second = self.add(0, low, d.0);
            let (second, higher) = full(d.1, carry, second);
            [high, higher, self.add(1, first, second)]
        }
    }

    take!(take_8, take_4, 2);
    take!(take_16, take_8, 3);
    take!(take_32, take_16, 4);
    take!(take_64, take_32, 5);
}
