//! Tickets survive a terminal, and say what is wrong with them when they did not.

use trestle_net::{Ticket, TicketError};
use trestle_protocol::ids::{Digest, PeerId};

fn ticket() -> Ticket {
    let mut key = [0; 32];
    let mut digest = [0; 32];
    for (index, (key, digest)) in (0_u8..).zip(key.iter_mut().zip(&mut digest)) {
        (*key, *digest) = (index.wrapping_mul(37), index.wrapping_mul(91));
    }
    Ticket {
        coordinator: PeerId(key),
        address: "192.0.2.7:4100,[2001:db8::7]:4101".parse().expect("an address"),
        run_digest: Digest(digest),
    }
}

#[test]
fn a_ticket_round_trips_through_text() {
    let text = ticket().to_string();
    assert!(text.starts_with("trestle1") && text.is_ascii(), "{text}");
    assert_eq!(text.parse(), Ok(ticket()));
    assert_eq!(format!("  {text}\n").parse(), Ok(ticket()), "a terminal adds blanks");
    let shouted = format!("trestle1{}", text["trestle1".len()..].to_uppercase());
    assert_eq!(shouted.parse(), Ok(ticket()));
}

/// Each character of a ticket, changed to each other one that tickets have: never read as another ticket.
#[test]
fn every_typo_is_noticed() {
    let text = ticket().to_string();
    for position in 0..text.len() {
        for other in "abcdefghijklmnopqrstuvwxyz234567".chars() {
            let mut typo = text.clone();
            typo.replace_range(position..=position, &other.to_string());
            if typo == text {
                continue;
            }
            let error = typo.parse::<Ticket>().expect_err("one character differs");
            match position {
                0..8 => assert!(matches!(error, TicketError::Prefix { .. }), "{error}"),
                _ => assert!(matches!(error, TicketError::Checksum), "{error} at {position}"),
            }
            assert!(!error.hint().is_empty());
        }
    }
}

#[test]
fn cut_stretched_and_strange_tickets_are_named() {
    let text = ticket().to_string();
    for end in 0..text.len() {
        let error = text[..end].parse::<Ticket>().expect_err("its end is missing");
        let fits = match end {
            0..8 => matches!(error, TicketError::Prefix { .. }),
            _ => matches!(error, TicketError::Length { .. } | TicketError::Checksum),
        };
        assert!(fits, "{error} after {end}");
    }
    let error = format!("{text}{}", "a".repeat(2000)).parse::<Ticket>().expect_err("too long");
    assert!(matches!(error, TicketError::Length { .. }), "{error}");
    let mut strange = text.clone();
    strange.replace_range(10..11, "0");
    let error = strange.parse::<Ticket>().expect_err("0 never occurs");
    assert!(matches!(error, TicketError::Character { found: '0', position: 11 }), "{error}");
    for text in ["", "trestle", "trestle2abc", "träger", "trestle1ü", "trestle1"] {
        text.parse::<Ticket>().expect_err("no ticket");
    }
}
