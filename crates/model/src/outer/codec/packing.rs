//! Owns how small integers lie in bytes: indices of 12 bits, codes of 2 bits, the low bits first. It may not know what they
//! stand for.

/// Returns the bytes that `count` indices of 12 bits take.
pub(crate) fn index_bytes(count: usize) -> usize {
    (12 * count).div_ceil(8)
}

/// Returns the bytes that `count` codes of 2 bits take.
pub(crate) fn code_bytes(count: usize) -> usize {
    count.div_ceil(4)
}

/// Whether the bits after the last number are zero, as a writer leaves them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Padding {
    Zero,
    Set,
}

/// Writes indices below 4096 into [`index_bytes`] of their count.
pub(crate) fn put_indices(indices: &[u16], bytes: &mut [u8]) {
    for (pair, slot) in indices.chunks(2).zip(bytes.chunks_mut(3)) {
        let second = pair.get(1).copied().unwrap_or(0);
        let both = u32::from(pair[0]) | u32::from(second) << 12;
        let slots = slot.len();
        slot.copy_from_slice(&both.to_le_bytes()[..slots]);
    }
}

/// Reads indices from [`index_bytes`] of their count.
pub(crate) fn get_indices(bytes: &[u8], indices: &mut [u16]) -> Padding {
    let (pairs, rest) = bytes.as_chunks::<3>();
    let (both, last) = indices.as_chunks_mut::<2>();
    for ([first, second], &[low, middle, high]) in both.iter_mut().zip(pairs) {
        *first = u16::from_le_bytes([low, middle & 0x0f]);
        *second = u16::from_le_bytes([middle, high]) >> 4;
    }
    match (last, rest) {
        ([last], &[low, high]) => {
            *last = u16::from_le_bytes([low, high & 0x0f]);
            if high >> 4 == 0 { Padding::Zero } else { Padding::Set }
        }
        _ => Padding::Zero,
    }
}

/// Writes codes below 4 into [`code_bytes`] of their count.
pub(crate) fn put_codes(codes: impl Iterator<Item = u8>, bytes: &mut [u8]) {
    bytes.fill(0);
    for (place, code) in codes.enumerate() {
        bytes[place / 4] |= code << (place % 4 * 2);
    }
}

/// Reads codes from [`code_bytes`] of their count.
pub(crate) fn get_codes(bytes: &[u8], codes: &mut [u8]) -> Padding {
    for (four, &byte) in codes.chunks_mut(4).zip(bytes) {
        for (place, code) in four.iter_mut().enumerate() {
            *code = byte >> (2 * place) & 3;
        }
    }
    let used = codes.len() % 4 * 2;
    match bytes.last() {
        Some(&last) if used > 0 && last >> used != 0 => Padding::Set,
        Some(_) | None => Padding::Zero,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_lie_twelve_bits_apart() {
        let mut bytes = [0; 5];
        put_indices(&[0xabc, 0x123, 0xfff], &mut bytes);
        assert_eq!(bytes, [0xbc, 0x3a, 0x12, 0xff, 0x0f]);
        let mut indices = [0; 3];
        assert_eq!(get_indices(&bytes, &mut indices), Padding::Zero);
        assert_eq!(indices, [0xabc, 0x123, 0xfff]);
        bytes[4] |= 0x10;
        assert_eq!(get_indices(&bytes, &mut indices), Padding::Set);
        assert_eq!((index_bytes(64), index_bytes(1), index_bytes(0)), (96, 2, 0));
    }

    #[test]
    fn codes_lie_two_bits_apart() {
        let mut bytes = [0xff; 2];
        put_codes([1, 2, 3, 0, 2].into_iter(), &mut bytes);
        assert_eq!(bytes, [0b00_11_10_01, 0b10]);
        let mut codes = [0; 5];
        assert_eq!(get_codes(&bytes, &mut codes), Padding::Zero);
        assert_eq!(codes, [1, 2, 3, 0, 2]);
        bytes[1] |= 0b100;
        assert_eq!(get_codes(&bytes, &mut codes), Padding::Set);
        assert_eq!((code_bytes(64), code_bytes(1), code_bytes(0)), (16, 1, 0));
    }
}
