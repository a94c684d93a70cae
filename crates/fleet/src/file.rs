//! The fleet file: which peers there are, what they have, and what they cost.
//!
//! Owns its reading and its checks; what comes out is checked once and for all. May not know runs.

use crate::availability::{Availability, Disk, Online, Trace};
use crate::device::{Device, built_in};
use crate::exchange::Exchange;
use crate::pipeline::Routing;
use crate::quantity::Quantity;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use toml::Spanned;

/// Peers of a group at most; together a fleet has no more than ten times as many.
const COUNT_MAX: i64 = 100_000;

/// Dollars an hour for one peer at most.
const PRICE_MAX: f64 = 1e6;

/// Failures of one peer in an hour at most.
const FAILURES_MAX: f64 = 1e3;

/// A seed for routing by chance: it decides nothing that is asked about.
const SEED: u64 = 1;

/// Peers that are alike.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// What the file calls it.
    pub name: String,
    /// How many there are.
    pub count: usize,
    /// What they compute with.
    pub device: Device,
    /// Bytes a second that one sends.
    pub up: f64,
    /// Bytes a second that one receives.
    pub down: f64,
    /// Seconds for a message to a peer of the same group and back.
    pub rtt: f64,
    /// Where they are; free text.
    pub site: String,
    /// Dollars an hour for one.
    pub price: f64,
    /// When they are there.
    pub availability: Availability,
}

/// A fleet.
#[derive(Clone, Debug, PartialEq)]
pub struct Fleet {
    /// What the file calls it.
    pub name: String,
    /// Its peers.
    pub groups: Vec<Group>,
    /// How the replicas of a stage exchange.
    pub exchange: Exchange,
    /// How microbatches find their way.
    pub routing: Routing,
}

/// More than nothing.
const SOME: f64 = f64::MIN_POSITIVE;

type Put = fn(&mut Group, f64);

/// What of a group can be changed after it was read: its name, what it is, from what to what, and how.
const CHANGEABLE: &[(&str, Quantity, RangeInclusive<f64>, Put)] = &[
    ("count", Quantity::Count, 0.0..=COUNT_MAX as f64, |group, value| group.count = value as usize),
    ("up", Quantity::Rate, SOME..=f64::MAX, |group, value| group.up = value),
    ("down", Quantity::Rate, SOME..=f64::MAX, |group, value| group.down = value),
    ("rtt", Quantity::Time, 0.0..=f64::MAX, |group, value| group.rtt = value),
    ("memory", Quantity::Bytes, SOME..=f64::MAX, |group, value| group.device.memory = value),
    ("reach", Quantity::Count, SOME..=1.0, |group, value| group.device.reach = value),
    ("price", Quantity::Count, 0.0..=PRICE_MAX, |group, value| group.price = value),
    ("failures_per_hour", Quantity::Count, 0.0..=FAILURES_MAX, |group, value| {
        // A rate that is said last is what is asked about.
        group.availability.trace = None;
        group.availability.failures_per_hour = value;
    }),
    ("replaced_after", Quantity::Time, 0.0..=f64::MAX, |group, value| {
        group.availability.trace = None;
        group.availability.replaced_after = value;
    }),
];

/// What replicas of a stage may do to come to one result, as a file has it; the first is usual.
const EXCHANGES: &[(&str, Exchange)] = &[("butterfly", Exchange::Butterfly), ("bridge", Exchange::Bridge)];

/// How microbatches may find their way, likewise.
const ROUTINGS: &[(&str, Routing)] = &[("turns", Routing::Turns), ("chance", Routing::Chance(SEED))];

/// What a peer that comes back may have, likewise.
const DISKS: &[(&str, Disk)] = &[("kept", Disk::Kept), ("lost", Disk::Lost)];

/// Reads a file that a fleet file names; says why it cannot.
pub type ReadFile<'a> = dyn Fn(&str) -> Result<String, String> + 'a;

/// Why a fleet file is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}: {what}")]
pub struct FleetFileError {
    file: String,
    line: usize,
    what: String,
    hint: String,
}

impl FleetFileError {
    /// Returns what to do about it.
    pub fn hint(&self) -> &str {
        &self.hint
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFleet {
    name: Option<String>,
    exchange: Option<Spanned<String>>,
    routing: Option<Spanned<String>>,
    #[serde(default)]
    group: Vec<Spanned<RawGroup>>,
    #[serde(default)]
    device: BTreeMap<Spanned<String>, RawDevice>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawGroup {
    name: Spanned<String>,
    count: Spanned<i64>,
    device: Spanned<String>,
    memory: Option<Spanned<String>>,
    up: Option<Spanned<String>>,
    down: Option<Spanned<String>>,
    rtt: Option<Spanned<String>>,
    site: Option<String>,
    price: Option<Spanned<f64>>,
    failures_per_hour: Option<Spanned<f64>>,
    replaced_after: Option<Spanned<String>>,
    trace: Option<Spanned<String>>,
    online: Option<Spanned<String>>,
    disk: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawDevice {
    like: Option<Spanned<String>>,
    bf16: Option<Spanned<String>>,
    f32: Option<Spanned<String>>,
    memory: Option<Spanned<String>>,
    bandwidth: Option<Spanned<String>>,
    reach: Option<Spanned<f64>>,
    source: Option<String>,
}

struct Reader<'a> {
    file: &'a str,
    text: &'a str,
    read: &'a ReadFile<'a>,
}

impl Fleet {
    /// Reads a fleet file; `file` serves for messages, and `read` gives the traces that it names.
    ///
    /// # Errors
    /// The first thing that is wrong, with its line, its value and a hint.
    pub fn parse(file: &str, text: &str, read: &ReadFile<'_>) -> Result<Self, FleetFileError> {
        let reader = Reader { file, text, read };
        let raw: RawFleet = toml::from_str(text).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start);
            let what = error.message().lines().collect::<Vec<_>>().join(", ");
            reader.refuse(at, what, "docs/plan.md lists the fields of a fleet file")
        })?;
        let devices = reader.devices(raw.device)?;
        if raw.group.is_empty() {
            let hint = "add one: [[group]] with name, count, device, up and down";
            return Err(reader.refuse(0, "there is no [[group]]".into(), hint));
        }
        let mut groups: Vec<Group> = Vec::new();
        for group in &raw.group {
            let name = group.get_ref().name.get_ref();
            if groups.iter().any(|other| other.name == *name) {
                let at = group.get_ref().name.span().start;
                return Err(reader.refuse(at, format!("two groups are called \"{name}\""), "rename one"));
            }
            groups.push(reader.group(group, &devices)?);
        }
        Ok(Self {
            name: raw.name.unwrap_or_else(|| file.into()),
            groups,
            exchange: reader.word("exchange", raw.exchange.as_ref(), EXCHANGES)?,
            routing: reader.word("routing", raw.routing.as_ref(), ROUTINGS)?,
        })
    }

    /// Changes a field of one group, as `GROUP.FIELD`, or of all, as `FIELD`, or of the fleet; the text is as in the file.
    ///
    /// # Errors
    /// There is no such group or field, or it cannot be that; says what is wrong.
    pub fn set(&mut self, field: &str, text: &str) -> Result<(), String> {
        match field {
            "exchange" => return set_word(&mut self.exchange, field, text, EXCHANGES),
            "routing" => return set_word(&mut self.routing, field, text, ROUTINGS),
            _ => {}
        }
        let (of, field) = match field.rsplit_once('.') {
            Some((group, field)) => (Some(group), field),
            None => (None, field),
        };
        let Some((_, kind, range, put)) = CHANGEABLE.iter().find(|(name, ..)| *name == field) else {
            let known: Vec<&str> = CHANGEABLE.iter().map(|(name, ..)| *name).collect();
            let known = known.join(", ");
            return Err(format!("`{field}` is no field to change; those are {known}, exchange, routing"));
        };
        let value = kind.read(text).filter(|value| range.contains(value));
        let value = value.ok_or_else(|| format!("`{field}` is \"{text}\", expected {}", kind.example()))?;
        let mut found = false;
        for group in self.groups.iter_mut().filter(|group| of.is_none_or(|of| group.name == of)) {
            put(group, value);
            found = true;
        }
        let groups = || self.groups.iter().map(|group| group.name.as_str()).collect::<Vec<_>>().join(", ");
        let unknown =
            || format!("there is no group \"{}\"; the groups are {}", of.unwrap_or_default(), groups());
        if found { Ok(()) } else { Err(unknown()) }
    }

    /// Returns how many peers there are.
    pub fn peers(&self) -> usize {
        self.groups.iter().map(|group| group.count).sum()
    }
}

fn set_word<T: Copy>(field: &mut T, name: &str, text: &str, words: &[(&str, T)]) -> Result<(), String> {
    let known = words.iter().find(|(word, _)| *word == text).map(|(_, meaning)| *meaning);
    *field = known.ok_or_else(|| format!("`{name}` is \"{text}\", expected {}", listed(words)))?;
    Ok(())
}

fn listed<T>(words: &[(&str, T)]) -> String {
    let allowed: Vec<String> = words.iter().map(|(word, _)| format!("\"{word}\"")).collect();
    allowed.join(" or ")
}

impl Reader<'_> {
    fn refuse(&self, at: usize, what: String, hint: impl Into<String>) -> FleetFileError {
        let line = self.text.as_bytes().iter().take(at).filter(|byte| **byte == b'\n').count() + 1;
        FleetFileError { file: self.file.into(), line, what, hint: hint.into() }
    }

    fn quantity(&self, field: &str, kind: Quantity, text: &Spanned<String>) -> Result<f64, FleetFileError> {
        kind.read(text.get_ref()).ok_or_else(|| {
            let what = format!("`{field}` is \"{}\", expected {}", text.get_ref(), kind.example());
            self.refuse(text.span().start, what, "write the number, then its unit, in quotes")
        })
    }

    /// Reads a quantity that nothing goes without.
    fn positive(&self, field: &str, kind: Quantity, text: &Spanned<String>) -> Result<f64, FleetFileError> {
        let value = self.quantity(field, kind, text)?;
        if value > 0.0 {
            return Ok(value);
        }
        let what = format!("`{field}` is \"{}\", expected more than nothing", text.get_ref());
        Err(self.refuse(text.span().start, what, "leave the group out if it has none"))
    }

    fn number(&self, field: &str, value: Option<&Spanned<f64>>, most: f64) -> Result<f64, FleetFileError> {
        let Some(value) = value else { return Ok(0.0) };
        if (0.0..=most).contains(value.get_ref()) {
            return Ok(*value.get_ref());
        }
        let what = format!("`{field}` is {}, expected a number from 0 to {most}", value.get_ref());
        Err(self.refuse(value.span().start, what, "correct it, or leave it out"))
    }

    fn word<T: Copy>(
        &self,
        field: &str,
        value: Option<&Spanned<String>>,
        words: &[(&str, T)],
    ) -> Result<T, FleetFileError> {
        let Some(value) = value else { return Ok(words[0].1) };
        let known = words.iter().find(|(word, _)| word == value.get_ref());
        known.map(|(_, meaning)| *meaning).ok_or_else(|| {
            let what = format!("`{field}` is \"{}\", expected {}", value.get_ref(), listed(words));
            self.refuse(value.span().start, what, "choose one of them, or leave the field out")
        })
    }

    fn devices(&self, raw: BTreeMap<Spanned<String>, RawDevice>) -> Result<Vec<Device>, FleetFileError> {
        let mut devices = built_in();
        for (name, raw) in raw {
            let (at, name) = (name.span().start, name.into_inner());
            let model = match &raw.like {
                Some(like) => Some(self.find(&devices, like)?.clone()),
                None => None,
            };
            let read = |field: &str, kind, text: &Option<Spanned<String>>, of: fn(&Device) -> f64| match (
                text, &model,
            ) {
                (Some(text), _) => self.positive(field, kind, text),
                (None, Some(model)) => Ok(of(model)),
                (None, None) => {
                    let what = format!("[device.{name}] does not say `{field}`");
                    Err(self.refuse(
                        at,
                        what,
                        format!("say it, or say whose it has: like = \"{}\"", "a100-80"),
                    ))
                }
            };
            let reach = match (&raw.reach, &model) {
                (Some(reach), _) if *reach.get_ref() > 0.0 => self.number("reach", Some(reach), 1.0)?,
                (None, Some(model)) => model.reach,
                (Some(_) | None, _) => {
                    let at = raw.reach.as_ref().map_or(at, |reach| reach.span().start);
                    let what =
                        format!("[device.{name}] has no `reach`, the part of its peak that it reaches");
                    return Err(self.refuse(
                        at,
                        what,
                        "a number above 0, to 1; trained GPUs reach 0.4 to 0.65",
                    ));
                }
            };
            let device = Device {
                bf16_peak: read("bf16", Quantity::Count, &raw.bf16, |device| device.bf16_peak)?,
                f32_peak: read("f32", Quantity::Count, &raw.f32, |device| device.f32_peak)?,
                memory: read("memory", Quantity::Bytes, &raw.memory, |device| device.memory)?,
                bandwidth: read("bandwidth", Quantity::Bytes, &raw.bandwidth, |device| device.bandwidth)?,
                reach,
                launch: model.as_ref().map_or(devices[0].launch, |model| model.launch),
                source: raw.source.unwrap_or_else(|| format!("{}, [device.{name}]", self.file)),
                name,
            };
            devices.retain(|other| other.name != device.name);
            devices.push(device);
        }
        Ok(devices)
    }

    fn find<'d>(&self, devices: &'d [Device], name: &Spanned<String>) -> Result<&'d Device, FleetFileError> {
        devices.iter().find(|device| device.name == *name.get_ref()).ok_or_else(|| {
            let known: Vec<&str> = devices.iter().map(|device| device.name.as_str()).collect();
            let what = format!("there is no device \"{}\"", name.get_ref());
            let hint = format!("known are {}; describe another as [device.NAME]", known.join(", "));
            self.refuse(name.span().start, what, hint)
        })
    }

    fn group(&self, raw: &Spanned<RawGroup>, devices: &[Device]) -> Result<Group, FleetFileError> {
        let at = raw.span().start;
        let raw = raw.get_ref();
        let name = raw.name.get_ref().clone();
        let count = *raw.count.get_ref();
        if !(1..=COUNT_MAX).contains(&count) {
            let what = format!("`count` is {count}, expected 1 to {COUNT_MAX}");
            return Err(self.refuse(raw.count.span().start, what, "say how many such peers there are"));
        }
        let mut device = self.find(devices, &raw.device)?.clone();
        if let Some(memory) = &raw.memory {
            let bytes = self.positive("memory", Quantity::Bytes, memory)?;
            // Machines with memory of their own come with more or less of it, but not with ten times as much.
            if bytes > 10.0 * device.memory {
                let what =
                    format!("`memory` is \"{}\", ten times what a {} has", memory.get_ref(), device.name);
                return Err(self.refuse(
                    memory.span().start,
                    what,
                    "give one peer's memory, not the group's",
                ));
            }
            device.memory = bytes;
        }
        let link = |field: &str, text: &Option<Spanned<String>>| match text {
            Some(text) => self.positive(field, Quantity::Rate, text),
            None => {
                let what = format!("group \"{name}\" has no `{field}`: it has no link");
                Err(self.refuse(at, what, format!("say what one of its peers has: {field} = \"100Mbit\"")))
            }
        };
        Ok(Group {
            count: count as usize,
            up: link("up", &raw.up)?,
            down: link("down", &raw.down)?,
            rtt: self.time("rtt", raw.rtt.as_ref(), 0.05)?,
            site: raw.site.clone().unwrap_or_default(),
            price: self.number("price", raw.price.as_ref(), PRICE_MAX)?,
            availability: self.availability(raw)?,
            device,
            name,
        })
    }

    fn time(&self, field: &str, text: Option<&Spanned<String>>, usual: f64) -> Result<f64, FleetFileError> {
        text.map_or(Ok(usual), |text| self.quantity(field, Quantity::Time, text))
    }

    fn availability(&self, raw: &RawGroup) -> Result<Availability, FleetFileError> {
        let failures = self.number("failures_per_hour", raw.failures_per_hour.as_ref(), FAILURES_MAX)?;
        let replaced_after = self.time("replaced_after", raw.replaced_after.as_ref(), 300.0)?;
        let mut availability = Availability::rate(failures, replaced_after);
        availability.disk = self.word("disk", raw.disk.as_ref(), DISKS)?;
        if let Some(online) = &raw.online {
            let what = || {
                format!(
                    "`online` is \"{}\", expected a time of day such as \"20:00-08:00\"",
                    online.get_ref()
                )
            };
            let read = Online::read(online.get_ref());
            let hint = "leave it out where they are there day and night";
            availability.online = Some(read.ok_or_else(|| self.refuse(online.span().start, what(), hint))?);
        }
        if let Some(trace) = &raw.trace {
            let (path, at) = (trace.get_ref(), trace.span().start);
            let hint = "docs/plan.md has the form of a trace; its path is from the fleet file on";
            if raw.failures_per_hour.is_some() || raw.replaced_after.is_some() {
                let what = format!("`trace` is \"{path}\", and a rate of failures is said too");
                return Err(self.refuse(at, what, "leave one of them out: the trace has its own rate"));
            }
            let text = (self.read)(path).map_err(|error| {
                self.refuse(at, format!("`trace` \"{path}\" cannot be read: {error}"), hint)
            })?;
            let trace = Trace::parse(&text)
                .map_err(|error| self.refuse(at, format!("`trace` \"{path}\", {error}"), hint))?;
            availability.follow(trace);
        }
        Ok(availability)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(file: &str, text: &str) -> Result<Fleet, FleetFileError> {
        Fleet::parse(file, text, &|path| match path {
            "short.csv" => Ok("seconds,peer,event\n10,0,gone\n70,0,back\n100,,end\n".into()),
            "wrong.csv" => Ok("seconds,peer,event\n10,0,vanished\n".into()),
            _ => Err("there is no such file".into()),
        })
    }

    const GROUP: &str =
        "[[group]]\nname = \"a\"\ncount = 2\ndevice = \"t4\"\nup = \"10Mbit\"\ndown = \"20Mbit\"\n";

    #[test]
    fn a_group_is_read_with_its_defaults() {
        let fleet = parse("f.toml", GROUP).expect("it is whole");
        assert_eq!((fleet.name.as_str(), fleet.peers(), fleet.exchange), ("f.toml", 2, Exchange::Butterfly));
        let group = &fleet.groups[0];
        assert_eq!((group.up, group.down, group.rtt, group.price), (1.25e6, 2.5e6, 0.05, 0.0));
        assert_eq!((group.device.name.as_str(), group.device.memory), ("t4", 16e9));
    }

    #[test]
    fn a_device_of_one_s_own_takes_the_rest_from_another() {
        let text = format!("[device.big]\nlike = \"t4\"\nmemory = \"32GB\"\nreach = 0.5\n{GROUP}")
            .replace("\"t4\"\nup", "\"big\"\nup");
        let device = parse("f", &text).expect("it is whole").groups[0].device.clone();
        assert_eq!((device.memory, device.bandwidth, device.reach), (32e9, 320e9, 0.5));
        assert_eq!(device.source, "f, [device.big]");
    }

    #[test]
    fn a_trace_gives_its_rate_until_another_is_said() {
        let text = format!("{GROUP}trace = \"short.csv\"\nonline = \"08:00-20:00\"\ndisk = \"lost\"\n");
        let mut fleet = parse("f", &text).expect("it is whole");
        let Availability { failures_per_hour, replaced_after, disk, .. } = fleet.groups[0].availability;
        assert_eq!((failures_per_hour, replaced_after, disk), (90.0, 60.0, Disk::Lost));
        fleet.set("failures_per_hour", "2").expect("it is a rate");
        let peers = &fleet.groups[0].availability;
        assert_eq!((peers.failures_per_hour, peers.replaced_after, &peers.trace), (2.0, 60.0, &None));
        assert!(peers.online.is_some());
    }

    #[test]
    fn groups_are_changed_by_name_or_all_at_once() {
        let text = format!("{GROUP}{}", GROUP.replace("\"a\"", "\"b.c\""));
        let mut fleet = parse("f", &text).expect("it is whole");
        fleet.set("b.c.up", "1Gbit").expect("it is there");
        fleet.set("price", "0.5").expect("all have one");
        let of = |at: usize| (fleet.groups[at].up, fleet.groups[at].price);
        assert_eq!((of(0), of(1)), ((1.25e6, 0.5), (125e6, 0.5)));
        fleet.set("exchange", "bridge").expect("it is one");
        assert_eq!(fleet.exchange, Exchange::Bridge);
        for (field, text, said) in [
            ("routing", "luck", "`routing` is \"luck\", expected \"turns\" or \"chance\""),
            ("d.up", "1Gbit", "there is no group \"d\"; the groups are a, b.c"),
            ("up", "0Mbit", "`up` is \"0Mbit\", expected a rate such as \"856Mbit\" or \"1.2Gbit\""),
            ("speed", "1", "`speed` is no field to change; those are count, up"),
        ] {
            let error = fleet.set(field, text).expect_err(said);
            assert!(error.starts_with(said), "{error}");
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        for (from, to, line, what) in [
            ("\"t4\"", "\"t5\"", 4, "there is no device \"t5\""),
            ("up = \"10Mbit\"\n", "", 1, "group \"a\" has no `up`: it has no link"),
            (
                "\"20Mbit\"",
                "\"20MB\"",
                6,
                "`down` is \"20MB\", expected a rate such as \"856Mbit\" or \"1.2Gbit\"",
            ),
            ("\"20Mbit\"", "\"0Mbit\"", 6, "`down` is \"0Mbit\", expected more than nothing"),
            ("count = 2", "count = 0", 3, "`count` is 0, expected 1 to 100000"),
            ("count = 2", "count = 2\nprice = -1.0", 4, "`price` is -1, expected a number from 0 to 1000000"),
            ("count = 2", "count = 2\nmemory = \"1TB\"", 4, "`memory` is \"1TB\", ten times what a t4 has"),
            ("count = 2", "count = 2\nspeed = 3", 4, "unknown field `speed`"),
            ("count = 2", "count = \"two\"", 3, "invalid type: string \"two\", expected i64"),
            (
                "[[group]]",
                "exchange = \"ring\"\n[[group]]",
                1,
                "`exchange` is \"ring\", expected \"butterfly\" or \"bridge\"",
            ),
            ("[[group]]", "[device.x]\nbf16 = \"1T\"\n[[group]]", 1, "[device.x] has no `reach`"),
            (
                "count = 2",
                "count = 2\ndisk = \"full\"",
                4,
                "`disk` is \"full\", expected \"kept\" or \"lost\"",
            ),
            ("count = 2", "count = 2\nonline = \"late\"", 4, "`online` is \"late\", expected a time of day"),
            (
                "count = 2",
                "count = 2\ntrace = \"no.csv\"",
                4,
                "`trace` \"no.csv\" cannot be read: there is no",
            ),
            (
                "count = 2",
                "count = 2\ntrace = \"wrong.csv\"",
                4,
                "`trace` \"wrong.csv\", line 2: `event` is \"vanished\", expected gone, back or end",
            ),
            (
                "count = 2",
                "count = 2\nfailures_per_hour = 1.0\ntrace = \"short.csv\"",
                5,
                "`trace` is \"short.csv\", and a rate of failures is said too",
            ),
        ] {
            let text = GROUP.replace(from, to);
            let error = parse("f.toml", &text).expect_err(what);
            let said = error.to_string();
            assert!(said.starts_with(&format!("f.toml:{line}: {what}")), "{said}");
            assert!(!error.hint().is_empty());
        }
        let twice = format!("{GROUP}{GROUP}");
        assert_eq!(parse("f", &twice).expect_err("twice").to_string(), "f:8: two groups are called \"a\"");
        assert_eq!(parse("f", "").expect_err("empty").to_string(), "f:1: there is no [[group]]");
    }
}
