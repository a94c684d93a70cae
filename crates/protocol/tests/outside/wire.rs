//! The wire form under every kind of bytes: what we write comes back, what we did not write is read or refused.

use crate::nonsense::{self, World};
use crate::swarm::spec;
use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use trestle_protocol::handshake;
use trestle_protocol::spec::Schedule;
use trestle_protocol::wire::{Frame, HEADER_BYTES_MAX, WIRE_VERSION, WireError, decode, encode};

fn world() -> World {
    World::new(&spec(Schedule::Flush))
}

/// Bytes that begin with our version more often than chance would have it.
fn header() -> impl Strategy<Value = Vec<u8>> {
    let versioned = vec(any::<u8>(), 0..300).prop_map(|rest| {
        let mut header = WIRE_VERSION.to_le_bytes().to_vec();
        header.extend(rest);
        header
    });
    prop_oneof![3 => versioned, 1 => vec(any::<u8>(), 0..300)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3_000))]

    #[test]
    fn every_message_comes_back(message in world().message()) {
        let frame = encode(&message);
        let read = decode(&frame);
        prop_assert!(read.is_ok(), "{:?} of {:?}", read, message);
        // Compared as bytes, since a loss that is not a number differs from itself.
        prop_assert_eq!(read.map(|message| encode(&message)), Ok(frame));
    }

    #[test]
    fn any_bytes_are_read_or_refused(header in header(), payload in vec(any::<u8>(), 0..100)) {
        let frame = Frame { header: header.into(), payload: payload.into() };
        if let Ok(message) = decode(&frame) {
            let again = decode(&encode(&message));
            prop_assert!(again.is_ok(), "what was read can be written and read: {:?}", message);
        }
    }

    #[test]
    fn a_flipped_bit_is_read_or_refused(message in world().message(), at in any::<prop::sample::Index>(), bit in 0..8_u8) {
        let frame = encode(&message);
        let mut header = frame.header.to_vec();
        let at = at.index(header.len());
        header[at] ^= 1 << bit;
        let read = decode(&Frame { header: header.into(), payload: frame.payload.clone() });
        if at < 2 {
            let refused = matches!(read, Err(WireError::Version { .. }));
            prop_assert!(refused, "read {:?}", read);
        } else if let Ok(message) = read {
            prop_assert_ne!(encode(&message), frame, "a changed header is another message");
        }
    }

    #[test]
    fn a_cut_or_lengthened_header_is_refused(message in world().message(), cut in any::<prop::sample::Index>()) {
        let frame = encode(&message);
        let whole = frame.header.len();
        let cut = frame.header.slice(..cut.index(whole));
        let read = decode(&Frame { header: cut, payload: frame.payload.clone() });
        prop_assert!(read.is_err(), "read {:?}", read);
        let mut longer = frame.header.to_vec();
        longer.push(0);
        let longer = Frame { header: longer.into(), payload: frame.payload };
        prop_assert_eq!(decode(&longer), Err(WireError::Trailing { got: 1 }));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn first_words_come_back(hello in nonsense::hello(), welcome in nonsense::welcome()) {
        let bytes = handshake::encode(&hello);
        let read = handshake::decode_hello(&bytes).map(|hello| handshake::encode(&hello));
        prop_assert_eq!(read, Some(bytes));
        let bytes = handshake::encode(&welcome);
        let read = handshake::decode_welcome(&bytes).map(|welcome| handshake::encode(&welcome));
        prop_assert_eq!(read, Some(bytes));
    }

    #[test]
    fn any_first_words_are_read_or_refused(bytes in vec(any::<u8>(), 0..400), spec in nonsense::run_spec()) {
        if let Some(hello) = handshake::decode_hello(&bytes) {
            handshake::answer(&spec, &hello);
        }
        if let Some(hello) = handshake::decode_hello(&handshake::encode(&handshake::hello(spec.digest(), Some(&spec)))) {
            prop_assert_eq!(handshake::answer(&spec, &hello), handshake::Welcome::Accepted { spec: None });
        }
        handshake::decode_welcome(&bytes);
    }

    #[test]
    fn specs_that_differ_are_told_apart(ours in nonsense::run_spec(), theirs in nonsense::run_spec()) {
        let answer = handshake::answer(&ours, &handshake::hello(theirs.digest(), Some(&theirs)));
        let refused = matches!(answer, handshake::Welcome::Refused(_));
        prop_assert_eq!(refused, ours.digest() != theirs.digest());
    }
}

#[test]
fn what_is_too_long_is_refused_before_it_is_read() {
    let header = Bytes::from(vec![1; HEADER_BYTES_MAX + 1]);
    let got = HEADER_BYTES_MAX + 1;
    assert_eq!(decode(&Frame { header, payload: Bytes::new() }), Err(WireError::HeaderLength { got }));
}
