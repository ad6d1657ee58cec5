//! Numbers as Terraform computes with them: binary fractions of at most 512 bits, rounded to the nearest and to
//! even, written with as few decimal digits as say which number it is. `0.1 * 3` is `0.3`.

use std::{cmp::Ordering, fmt, str::FromStr};

use num_bigint::{BigInt, BigUint, Sign};

/// Bits of a mantissa.
const PRECISION: u64 = 512;
/// Exponents beyond this are refused, decimal ones when they are read and binary ones of results: a number of
/// such a size is a mistake, and would take memory in proportion.
const EXPONENT_MAX: i64 = 1024;

/// `mantissa * 2^exponent`; the mantissa is odd, or all is 0, so that equal numbers have equal fields.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Number {
    mantissa: BigInt,
    exponent: i64,
}

/// Why there is no such number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum NumberError {
    #[error("is not a number")]
    Text,
    #[error("is too large or too small a number")]
    Range,
    #[error("divides by zero")]
    DivisionByZero,
}

fn power_of_two(exponent: u64) -> BigUint {
    BigUint::from(1u8) << exponent
}

impl Number {
    fn new(sign: Sign, mantissa: BigUint, exponent: i64) -> Result<Self, NumberError> {
        Self::rounded(sign, mantissa, exponent, false)
    }

    /// `more`: whether something was cut off below the mantissa.
    fn rounded(sign: Sign, mut m: BigUint, mut exponent: i64, more: bool) -> Result<Self, NumberError> {
        let excess = m.bits().saturating_sub(PRECISION);
        if excess > 0 {
            let tail = &m & (power_of_two(excess) - 1u8);
            let half = power_of_two(excess - 1);
            m >>= excess;
            exponent += i64::try_from(excess).map_err(|_| NumberError::Range)?;
            let up = match tail.cmp(&half) {
                Ordering::Less => false,
                Ordering::Equal => more || m.bit(0),
                Ordering::Greater => true,
            };
            if up {
                m += 1u8;
            }
        }
        let Some(zeros) = m.trailing_zeros() else {
            return Ok(Self { mantissa: BigInt::ZERO, exponent: 0 });
        };
        m >>= zeros;
        exponent += i64::try_from(zeros).map_err(|_| NumberError::Range)?;
        // A quotient has as many bits below the point as the precision and its size ask for.
        let reach = i64::try_from(m.bits()).map_err(|_| NumberError::Range)? + exponent;
        if reach.abs() > EXPONENT_MAX * 4 {
            return Err(NumberError::Range);
        }
        Ok(Self { mantissa: BigInt::from_biguint(sign, m), exponent })
    }

    /// The number nearest to a fraction.
    fn ratio(sign: Sign, numerator: &BigUint, denominator: &BigUint) -> Result<Self, NumberError> {
        let shift = (PRECISION + 2 + denominator.bits()).saturating_sub(numerator.bits());
        let shifted = numerator << shift;
        let quotient = &shifted / denominator;
        let more = &quotient * denominator != shifted;
        // The remainder only matters as being there; two bits below the precision tell the halves apart.
        let quotient = (quotient << 1u8) + u8::from(more);
        let exponent = -i64::try_from(shift + 1).map_err(|_| NumberError::Range)?;
        Self::rounded(sign, quotient, exponent, more)
    }

    pub(super) fn add(&self, other: &Self) -> Result<Self, NumberError> {
        let exponent = self.exponent.min(other.exponent);
        let aligned = |n: &Self| &n.mantissa << u64::try_from(n.exponent - exponent).unwrap_or_default();
        let (sign, m) = (aligned(self) + aligned(other)).into_parts();
        Self::new(sign, m, exponent)
    }

    pub(super) fn sub(&self, other: &Self) -> Result<Self, NumberError> {
        self.add(&other.neg())
    }

    pub(super) fn mul(&self, other: &Self) -> Result<Self, NumberError> {
        let (sign, m) = (&self.mantissa * &other.mantissa).into_parts();
        Self::new(sign, m, self.exponent + other.exponent)
    }

    pub(super) fn div(&self, other: &Self) -> Result<Self, NumberError> {
        if other.is_zero() {
            return Err(NumberError::DivisionByZero);
        }
        let sign = if self.is_negative() == other.is_negative() { Sign::Plus } else { Sign::Minus };
        let (a, b) = (self.mantissa.magnitude(), other.mantissa.magnitude());
        let exponent = self.exponent - other.exponent;
        let by = exponent.unsigned_abs();
        if exponent >= 0 { Self::ratio(sign, &(a << by), b) } else { Self::ratio(sign, a, &(b << by)) }
    }

    /// What is left of a division that is cut towards zero.
    pub(super) fn rem(&self, other: &Self) -> Result<Self, NumberError> {
        let whole = self.div(other)?.trunc()?;
        self.sub(&other.mul(&whole)?)
    }

    pub(super) fn neg(&self) -> Self {
        Self { mantissa: -&self.mantissa, exponent: self.exponent }
    }

    pub(super) fn abs(&self) -> Self {
        if self.is_negative() { self.neg() } else { self.clone() }
    }

    pub(super) fn trunc(&self) -> Result<Self, NumberError> {
        if self.exponent >= 0 {
            return Ok(self.clone());
        }
        let m = self.mantissa.magnitude() >> self.exponent.unsigned_abs();
        Self::new(self.mantissa.sign(), m, 0)
    }

    pub(super) fn floor(&self) -> Result<Self, NumberError> {
        let whole = self.trunc()?;
        if self.is_negative() && whole != *self { whole.sub(&Self::from(1u32)) } else { Ok(whole) }
    }

    pub(super) fn ceil(&self) -> Result<Self, NumberError> {
        Ok(self.neg().floor()?.neg())
    }

    /// To a whole power; what `pow` is used for.
    pub(super) fn pow(&self, exponent: u32) -> Result<Self, NumberError> {
        let mut result = Self::from(1u32);
        let mut square = self.clone();
        let mut left = exponent;
        while left > 0 {
            if left & 1 == 1 {
                result = result.mul(&square)?;
            }
            left >>= 1;
            if left > 0 {
                square = square.mul(&square)?;
            }
        }
        Ok(result)
    }

    pub(super) fn is_zero(&self) -> bool {
        self.mantissa == BigInt::ZERO
    }

    pub(super) fn is_negative(&self) -> bool {
        self.mantissa.sign() == Sign::Minus
    }

    pub(super) fn is_whole(&self) -> bool {
        self.exponent >= 0
    }

    /// When it is whole and fits.
    pub(super) fn to_i64(&self) -> Option<i64> {
        if !self.is_whole() || self.exponent > 64 {
            return None;
        }
        i64::try_from(&self.mantissa << self.exponent.unsigned_abs()).ok()
    }

    /// When it is whole, not negative, and fits.
    pub(super) fn to_usize(&self) -> Option<usize> {
        self.to_i64().and_then(|n| usize::try_from(n).ok())
    }
}

impl From<u32> for Number {
    fn from(n: u32) -> Self {
        Self::from(u64::from(n))
    }
}

impl From<u64> for Number {
    fn from(n: u64) -> Self {
        let zeros = if n == 0 { 0 } else { n.trailing_zeros() };
        Self { mantissa: BigInt::from(n >> zeros), exponent: i64::from(zeros) }
    }
}

impl From<usize> for Number {
    fn from(n: usize) -> Self {
        Self::from(u64::try_from(n).unwrap_or(u64::MAX))
    }
}

impl FromStr for Number {
    type Err = NumberError;

    /// Decimal, with a fraction and an exponent.
    fn from_str(text: &str) -> Result<Self, NumberError> {
        let (negative, rest) = match text.strip_prefix('-') {
            Some(rest) => (true, rest.trim_start()),
            None => (false, text.strip_prefix('+').unwrap_or(text)),
        };
        let (digits, exponent) = match rest.split_once(['e', 'E']) {
            Some((digits, exponent)) => {
                let plain = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
                if plain.is_empty() || !plain.bytes().all(|b| b.is_ascii_digit()) {
                    return Err(NumberError::Text);
                }
                (digits, exponent.parse::<i64>().map_err(|_| NumberError::Range)?)
            }
            None => (rest, 0),
        };
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        let all: String = [whole, fraction].concat();
        if all.is_empty() || !all.bytes().all(|b| b.is_ascii_digit()) || all.len() > 4096 {
            return Err(NumberError::Text);
        }
        let power = exponent - i64::try_from(fraction.len()).map_err(|_| NumberError::Range)?;
        if power.abs() > EXPONENT_MAX + 4096 {
            return Err(NumberError::Range);
        }
        let digits = BigUint::parse_bytes(all.as_bytes(), 10).ok_or(NumberError::Text)?;
        let ten = BigUint::from(10u8).pow(u32::try_from(power.unsigned_abs()).unwrap_or_default());
        let sign = if negative { Sign::Minus } else { Sign::Plus };
        if power >= 0 { Self::new(sign, digits * ten, 0) } else { Self::ratio(sign, &digits, &ten) }
    }
}

impl PartialOrd for Number {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Number {
    fn cmp(&self, other: &Self) -> Ordering {
        let exponent = self.exponent.min(other.exponent);
        let aligned = |n: &Self| &n.mantissa << u64::try_from(n.exponent - exponent).unwrap_or_default();
        aligned(self).cmp(&aligned(other))
    }
}

/// Digits and the number of them before the point.
fn decimal(mantissa: &BigUint, exponent: i64) -> (Vec<u8>, i64) {
    let by = u32::try_from(exponent.unsigned_abs()).unwrap_or_default();
    let (whole, below) = if exponent >= 0 {
        (mantissa << by, 0)
    } else {
        (mantissa * BigUint::from(5u8).pow(by), i64::from(by))
    };
    let digits = whole.to_string().into_bytes();
    let point = i64::try_from(digits.len()).unwrap_or(i64::MAX) - below;
    (digits, point)
}

/// The shortest digits that are nearer to this number than to any other of the same precision.
fn shortest(number: &Number) -> (Vec<u8>, i64) {
    let magnitude = number.mantissa.magnitude();
    // With one bit below the precision, so that half of the distance to the next number is 1.
    let widen = (PRECISION + 1).saturating_sub(magnitude.bits());
    let m = magnitude << widen;
    let exponent = number.exponent - i64::try_from(widen).unwrap_or_default();
    let even = !m.bit(1);
    let (mut digits, mut point) = decimal(&m, exponent);
    let power = magnitude.bits() == 1;
    let (lower, lower_point) =
        if power { decimal(&((&m << 1u8) - 1u8), exponent - 1) } else { decimal(&(&m - 1u8), exponent) };
    let (upper, upper_point) = decimal(&(&m + 1u8), exponent);
    // As numbers with the point where the largest has it.
    let at = |digits: &[u8], own: i64, i: usize| -> u8 {
        let skip = usize::try_from(upper_point - own).unwrap_or_default();
        i.checked_sub(skip).and_then(|i| digits.get(i)).copied().unwrap_or(b'0')
    };
    if upper_point > point {
        let zeros = usize::try_from(upper_point - point).unwrap_or_default();
        digits.splice(0..0, std::iter::repeat_n(b'0', zeros));
        point = upper_point;
    }
    for i in 0..digits.len() {
        let (l, m, u) = (at(&lower, lower_point, i), at(&digits, point, i), at(&upper, upper_point, i));
        let lower_len = lower.len() + usize::try_from(upper_point - lower_point).unwrap_or_default();
        let down = l != m || (even && i + 1 == lower_len);
        let up = m != u && (even || m + 1 < u || i + 1 < upper.len());
        let round_up = match (down, up) {
            (false, false) => continue,
            (true, false) => false,
            (false, true) => true,
            // To the nearer; a tie to even.
            (true, true) => match digits.get(i + 1) {
                None => false,
                Some(b'5') if digits.len() == i + 2 => (m - b'0') % 2 == 1,
                Some(next) => *next >= b'5',
            },
        };
        digits.truncate(i + 1);
        if round_up {
            let mut j = i + 1;
            loop {
                let Some(digit) = j.checked_sub(1).and_then(|k| digits.get_mut(k)) else {
                    digits.insert(0, b'1');
                    point += 1;
                    break;
                };
                if *digit == b'9' {
                    *digit = b'0';
                    j -= 1;
                } else {
                    *digit += 1;
                    break;
                }
            }
        }
        break;
    }
    (digits, point)
}

impl fmt::Display for Number {
    /// Never with an exponent.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_zero() {
            return f.write_str("0");
        }
        let (digits, point) = shortest(self);
        let mut text = String::new();
        if self.is_negative() {
            text.push('-');
        }
        let before = usize::try_from(point).unwrap_or_default();
        let shown: String = digits.iter().map(|b| char::from(*b)).collect();
        let whole: String = shown.chars().take(before).collect();
        let whole = whole.trim_start_matches('0');
        text.push_str(if whole.is_empty() { "0" } else { whole });
        if before > shown.len() && !whole.is_empty() {
            text.push_str(&"0".repeat(before - shown.len()));
        }
        let zeros = usize::try_from(-point).unwrap_or_default();
        let fraction: String = std::iter::repeat_n('0', zeros).chain(shown.chars().skip(before)).collect();
        let fraction = fraction.trim_end_matches('0');
        if !fraction.is_empty() {
            text.push('.');
            text.push_str(fraction);
        }
        f.write_str(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn n(text: &str) -> Number {
        text.parse().expect("a number")
    }

    #[test]
    fn decimals_have_no_noise() {
        assert_eq!(n("0.1").mul(&n("3")).map(|n| n.to_string()).as_deref(), Ok("0.3"));
        assert_eq!(n("0.1").add(&n("0.2")).map(|n| n.to_string()).as_deref(), Ok("0.3"));
        assert_eq!(
            n("1").div(&n("3")).map(|n| n.to_string()).as_deref(),
            Ok(concat!(
                "0.333333333333333333333333333333333333333333333333333333333333333333333333333333333333333333333333",
                "33333333333333333333333333333333333333333333333333333333335"
            ))
        );
    }

    #[test]
    fn texts_come_back() {
        for text in [
            "0",
            "1",
            "-1",
            "10",
            "2.5",
            "0.1",
            "-0.001",
            "86400",
            "100000000000000000000000",
            "1000",
            "0.9",
            "999.999",
            "123456789.987654321",
            "0.00000000000000000000001",
            "1024",
            "0.5",
            "9.5",
            "99",
        ] {
            assert_eq!(n(text).to_string(), text);
        }
        assert_eq!(n("1e3").to_string(), "1000");
        assert_eq!(n("2.50").to_string(), "2.5");
        assert_eq!(n("1e-3").to_string(), "0.001");
        assert_eq!(n("1.0"), n("1"));
    }

    #[test]
    fn divisions() {
        assert_eq!(n("7").rem(&n("3")), Ok(n("1")));
        assert_eq!(n("-7").rem(&n("3")), Ok(n("-1")));
        assert_eq!(n("7.5").rem(&n("2")), Ok(n("1.5")));
        assert_eq!(n("1").div(&n("0")), Err(NumberError::DivisionByZero));
        assert_eq!(n("-2.5").floor(), Ok(n("-3")));
        assert_eq!(n("-2.5").ceil(), Ok(n("-2")));
        assert_eq!(n("2").pow(10), Ok(n("1024")));
        assert!(n("1e1000").mul(&n("1e1000")).is_err());
        assert!("1e99999".parse::<Number>().is_err());
        assert!("x".parse::<Number>().is_err());
    }

    proptest::proptest! {
        #[test]
        fn whole_numbers_are_exact(a: i64, b: i64) {
            let (x, y) = (n(&a.to_string()), n(&b.to_string()));
            proptest::prop_assert_eq!(x.to_string(), a.to_string());
            let sum = x.add(&y).expect("a number").to_string();
            proptest::prop_assert_eq!(sum, (i128::from(a) + i128::from(b)).to_string());
            let product = x.mul(&y).expect("a number").to_string();
            proptest::prop_assert_eq!(product, (i128::from(a) * i128::from(b)).to_string());
            proptest::prop_assert_eq!(x.cmp(&y), a.cmp(&b));
        }

        #[test]
        fn what_is_written_is_read_as_the_same(a in "-?[0-9]{1,20}\\.[0-9]{1,40}", b in "[1-9][0-9]{0,20}") {
            let x = n(&a).div(&n(&b)).expect("a number");
            proptest::prop_assert_eq!(n(&x.to_string()), x);
        }

        #[test]
        fn no_text_makes_it_panic(text in "[-+.0-9eE ]{0,30}") {
            drop(text.parse::<Number>().map(|n| n.to_string()));
        }
    }
}
