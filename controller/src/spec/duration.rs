//! Durations as people write them.

/// Seconds of a day.
pub(crate) const DAY: u64 = 86_400;

/// Why a text is no duration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DurationError {
    /// It begins with a minus sign.
    #[error("is negative")]
    Negative,
    /// Anything else than numbers and units.
    #[error("is not a duration")]
    NotADuration,
    /// More seconds than can be counted.
    #[error("is too large")]
    TooLarge,
}

/// Seconds (`90`), or numbers with units: `90s`, `15m`, `24h`, `2d`; several may follow each other: `1h30m`.
///
/// # Errors
/// [`DurationError`].
pub(crate) fn seconds(text: &str) -> Result<u64, DurationError> {
    let text = text.trim();
    if text.starts_with('-') {
        return Err(DurationError::Negative);
    }
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.parse().map_err(|_| DurationError::TooLarge);
    }
    let (mut total, mut number, mut any) = (0u64, String::new(), false);
    for c in text.chars() {
        if c.is_ascii_digit() {
            number.push(c);
            continue;
        }
        let unit = match c {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => DAY,
            ' ' => continue,
            _ => return Err(DurationError::NotADuration),
        };
        let count: u64 = number.parse().map_err(|_| DurationError::NotADuration)?;
        number.clear();
        any = true;
        total = count
            .checked_mul(unit)
            .and_then(|seconds| total.checked_add(seconds))
            .ok_or(DurationError::TooLarge)?;
    }
    if any && number.is_empty() { Ok(total) } else { Err(DurationError::NotADuration) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units_or_are_seconds() {
        for (text, wanted) in [
            ("90", 90),
            ("0", 0),
            (" 90 ", 90),
            ("15m", 900),
            ("1h30m", 5400),
            ("2d", 172_800),
            ("1d 2s", 86_402),
        ] {
            assert_eq!(seconds(text), Ok(wanted), "{text:?}");
        }
        for text in ["", " ", "h", "1h30", "1x", "1.5h"] {
            assert_eq!(seconds(text), Err(DurationError::NotADuration), "{text:?}");
        }
        for text in ["99999999999999999999", "999999999999999999d"] {
            assert_eq!(seconds(text), Err(DurationError::TooLarge), "{text:?}");
        }
        assert_eq!(seconds("-5"), Err(DurationError::Negative));
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text: String) {
            let _seconds = seconds(&text);
        }
    }
}
