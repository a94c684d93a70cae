//! How peers come to be: at the start, anew after a death, and as newcomers.
//!
//! Owns their keys, what they ask for, and the disk they find. Knows nothing of what becomes of them.

use crate::compute::Device;
use crate::disk::Disk;
use crate::fault::DiskFate;
use crate::peer::{self, Computing, Life, Peer};
use crate::swarm::{COORDINATOR, Happening, Swarm, SwarmError};
use bytes::Bytes;
use trestle_protocol::coordinator::CoordinatorConfig;
use trestle_protocol::ids::StageId;
use trestle_protocol::message::{Join, Text};
use trestle_protocol::node::Node;
use trestle_protocol::pipeline::checkpoints_kept;
use trestle_protocol::time::{Span, Time};
use trestle_protocol::worker::WorkerConfig;

/// How long workers go on without their coordinator, as where an operator has to start it again.
const COORDINATOR_WAIT: Span = Span::seconds(1_800);

impl Swarm<'_> {
    /// Makes the coordinator, a worker for each place, and the spares, and connects them.
    pub(super) fn make_peers(&mut self) -> Result<(), SwarmError> {
        let stages = self.config.spec.stages();
        assert_eq!(self.config.spans.len(), usize::from(stages), "each stage has its spans");
        self.peers.clear();
        self.by_id.clear();
        let node = self.coordinator()?;
        self.enrol(node, None);
        let places = (0..stages).flat_map(|stage| vec![Some(StageId(stage)); self.replicas()]);
        let spares = vec![None; self.faults.spares as usize];
        for wish in places.chain(spares).collect::<Vec<_>>() {
            self.newcomer(wish);
        }
        Ok(())
    }

    /// Starts a process again whose predecessor died, with the same key.
    pub(super) fn reborn(&mut self, index: usize, fate: DiskFate) -> Result<(), SwarmError> {
        self.expected -= 1;
        if self.peers[index].life != Life::Down || self.over_since.is_some() {
            return Ok(());
        }
        // The machine answers for a connection that its new process does not know.
        for (ends, epoch) in self.connections.at(index) {
            self.broken(ends, epoch, "reset by peer")?;
        }
        if fate == DiskFate::Lost {
            self.disks[index] = Disk::new(index, checkpoints_kept(&self.config.spec));
        }
        let wish = self.holders.iter().find(|(_, holder)| **holder == index).map(|(place, _)| place.stage);
        let old = &self.peers[index];
        let (birth, clock) = (old.birth + 1, old.clock);
        let (node, worker) = if index == COORDINATOR {
            (self.coordinator()?, None)
        } else {
            let (node, worker) = self.worker(index, wish);
            (node, Some(worker))
        };
        let made = Peer::new(self.peers[index].id, node, worker);
        self.peers[index] = Peer { birth, clock, ..made };
        if index != COORDINATOR {
            self.call(index, COORDINATOR);
        }
        Ok(())
    }

    /// Lets a newcomer come that was on its way.
    pub(super) fn came(&mut self, wish: Option<StageId>) {
        self.expected -= 1;
        if self.over_since.is_none() {
            self.newcomer(wish);
        }
    }

    /// Expects a peer to come back, or a newcomer, after which the running may end.
    pub(super) fn expect(&mut self, at: Time, happening: Happening) {
        self.expected += 1;
        self.queue.push(at, happening);
    }

    fn newcomer(&mut self, wish: Option<StageId>) {
        let index = self.peers.len();
        let (node, worker) = self.worker(index, wish);
        self.enrol(node, Some(worker));
        self.call(index, COORDINATOR);
    }

    fn enrol(&mut self, node: Node, worker: Option<Computing>) {
        let index = self.peers.len();
        let id = peer::id(&peer::key(self.config.seed, index));
        self.by_id.insert(id, index);
        self.peers.push(Peer::new(id, node, worker));
        if self.disks.len() <= index {
            self.disks.push(Disk::new(index, checkpoints_kept(&self.config.spec)));
        }
    }

    fn coordinator(&self) -> Result<Node, SwarmError> {
        let me = peer::id(&peer::key(self.config.seed, COORDINATOR));
        let config = CoordinatorConfig { spec: self.config.spec.clone(), me, seals: self.config.seals };
        Ok(Node::coordinator(config, self.durable.as_deref())?)
    }

    fn worker(&self, index: usize, stage: Option<StageId>) -> (Node, Computing) {
        let (spec, seed) = (&self.config.spec, self.config.seed);
        let key = peer::key(seed, index);
        let address = Bytes::copy_from_slice(&peer::id(&key).0);
        let device = format!("simulated device {index}");
        let held = self.disks.get(index).map(Disk::held).unwrap_or_default();
        let join = Join { address, stage, device, peak_flops: 0, text: Text::Here, held };
        let coordinator = peer::id(&peer::key(seed, COORDINATOR));
        let coordinator_address = Bytes::copy_from_slice(&coordinator.0);
        let config = WorkerConfig {
            spec: spec.clone(),
            key,
            seals: self.config.seals,
            coordinator,
            coordinator_address,
            coordinator_wait: COORDINATOR_WAIT,
            join,
        };
        let node = Node::worker(config);
        let spans = self.config.spans_of(index, stage.unwrap_or(StageId(0)));
        let device = Device::new(seed, index, spans);
        (node, Computing::new((self.maker)(spec), device, self.now))
    }

    fn replicas(&self) -> usize {
        usize::from(self.config.spec.pipeline.replicas)
    }
}
