//! A coordinator and workers started one by one, as on several machines, with a stranger who sends rubbish meanwhile.

use std::io::{BufRead, BufReader};
use std::net::UdpSocket;
use std::process::{Child, Stdio};

use trestle_net::Ticket;

use crate::command::{Place, losses, succeed, trestle};

struct Serving {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
    ticket: Ticket,
}

fn serve(place: &Place, run: &str, more: &[&str]) -> Serving {
    let mut command = trestle(&["serve"]);
    command.arg(place.run_file()).arg("--dir").arg(place.run_dir(run));
    command.args(["--listen", "127.0.0.1:0", "--json"]).args(more);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut ticket = String::new();
    output.read_line(&mut ticket).unwrap();
    Serving { child, output, ticket: ticket.trim().parse().unwrap() }
}

fn join(place: &Place, ticket: &Ticket, name: &str, more: &[&str]) -> std::process::Command {
    let mut command = trestle(&["join", &ticket.to_string()]);
    command.arg("--dir").arg(place.run_dir(name)).args(["--listen", "127.0.0.1:0", "--threads", "1"]);
    command.args(["--peak-flops", "1e9"]).args(more);
    command
}

#[test]
fn peers_join_with_a_ticket_and_rubbish_on_the_socket_disturbs_nobody() {
    let place = Place::new();
    let expected = losses(&succeed(&mut place.train("local", &["--steps", "20"])));
    let mut serving = serve(&place, "served", &["--steps", "20"]);
    let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
    let target = serving.ticket.address.sockets()[0];
    let throw_rubbish = || {
        for n in 0..200_u32 {
            let bytes: Vec<u8> = (0..n * 5 % 1200).map(|i| (i * 31 + n * 17) as u8).collect();
            stranger.send_to(&bytes, target).unwrap();
        }
    };
    throw_rubbish();
    let mut workers: Vec<Child> = (0..4)
        .map(|n| {
            let mut command = join(&place, &serving.ticket, &format!("peer-{n}"), &[]);
            command.stderr(Stdio::null()).spawn().unwrap()
        })
        .collect();
    let mut events = Vec::new();
    for line in (&mut serving.output).lines() {
        throw_rubbish();
        events.push(serde_json::from_str(&line.unwrap()).unwrap());
    }
    assert!(serving.child.wait().unwrap().success());
    for worker in &mut workers {
        assert!(worker.wait().unwrap().success());
    }
    assert_eq!(losses(&events), expected, "who holds which stage, and who starts it, changes no bit");
}

#[test]
fn a_ticket_of_another_run_is_refused_by_name() {
    let place = Place::new();
    let mut serving = serve(&place, "here", &[]);
    let mut other = serving.ticket.clone();
    other.run_digest.0[0] ^= 1;
    let output = join(&place, &other, "stranger", &[]).output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{words}");
    assert!(words.contains("run digests differ") && words.contains("hint: ask the coordinator"), "{words}");
    let output = join(&place, &serving.ticket, "far", &["--stage", "9"]).output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{words}");
    assert!(words.contains("stage 9 does not exist, the run has 4"), "{words}");
    serving.child.kill().unwrap();
    serving.child.wait().unwrap();
}
