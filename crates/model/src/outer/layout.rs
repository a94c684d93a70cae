//! Owns the order in which a stage's numbers are exchanged, and its cuts: tensors into units, all units into shards. It may
//! not know what the numbers mean, nor who holds which shard.
//!
//! Unit order is the order of the slots, and within a matrix that of its chunks, so that a chunk lies in one piece and any
//! stretch of whole units can be encoded by itself.

use std::ops::Range;

/// Rows and columns of a full chunk of a matrix, as SparseLoCo cuts it (arXiv 2508.15706).
pub const CHUNK: usize = 64;

/// Elements of the largest unit.
pub const UNIT_ELEMENTS_MAX: usize = CHUNK * CHUNK;

/// What all shares of a stage sum to: shares are in 1/65536.
pub const SHARES_SUM: u32 = 1 << 16;

/// Shares that do not make a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{count} shares sum to {sum}, expected 65536")]
pub struct SharesError {
    /// How many there are.
    pub count: usize,
    /// What they sum to.
    pub sum: u64,
}

/// How a tensor is cut into units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Into chunks of 64 x 64, row of chunks by row of chunks; smaller at the right and the lower edge.
    Matrix {
        /// Rows of the tensor.
        rows: usize,
        /// Columns of the tensor.
        columns: usize,
    },
    /// Into stretches of 4096 consecutive elements; the last may be shorter.
    Vector,
}

#[derive(Clone, Debug)]
struct Tensor {
    form: Form,
    first_element: usize,
    elements: usize,
}

/// The unit order of one stage.
#[derive(Clone, Debug)]
pub struct Layout {
    tensors: Vec<Tensor>,
    elements: usize,
    units: usize,
}

impl Layout {
    /// Lays out tensors of these shapes, given in slot order. A shape of two sizes is a matrix, any other a vector.
    pub fn new(shapes: &[Vec<usize>]) -> Layout {
        let mut layout = Layout { tensors: Vec::with_capacity(shapes.len()), elements: 0, units: 0 };
        for shape in shapes {
            let elements: usize = shape.iter().product();
            let (form, units) = match shape[..] {
                [rows, columns] => {
                    (Form::Matrix { rows, columns }, rows.div_ceil(CHUNK) * columns.div_ceil(CHUNK))
                }
                _ => (Form::Vector, elements.div_ceil(UNIT_ELEMENTS_MAX)),
            };
            layout.tensors.push(Tensor { form, first_element: layout.elements, elements });
            layout.elements += elements;
            layout.units += units;
        }
        layout
    }

    /// Returns how many numbers the stage has.
    pub fn elements(&self) -> usize {
        self.elements
    }

    /// Returns how many units they are cut into.
    pub fn units(&self) -> usize {
        self.units
    }

    /// Returns the BLAKE3 digest of all shapes in their order: what two layouts must share to exchange anything.
    pub fn digest(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        for tensor in &self.tensors {
            let (rows, columns) = match tensor.form {
                Form::Matrix { rows, columns } => (rows as u64, columns as u64),
                Form::Vector => (u64::MAX, tensor.elements as u64),
            };
            hasher.update(&rows.to_le_bytes()).update(&columns.to_le_bytes());
        }
        *hasher.finalize().as_bytes()
    }

    /// Cuts the stage into one range of elements a share, at unit borders, covering all.
    ///
    /// Shares are in 1/65536 of the elements and sum to 65536. A range may be empty; that of share 0 always is.
    ///
    /// # Errors
    /// Shares that do not sum to 65536.
    pub fn shards(&self, shares: &[u32]) -> Result<Vec<Range<usize>>, SharesError> {
        let sum: u64 = shares.iter().map(|&share| u64::from(share)).sum();
        if sum != u64::from(SHARES_SUM) {
            return Err(SharesError { count: shares.len(), sum });
        }
        let (mut shards, mut start, mut sum) = (Vec::with_capacity(shares.len()), 0, 0);
        for &share in shares {
            sum += u128::from(share);
            let target = (self.elements as u128 * sum / u128::from(SHARES_SUM)) as usize;
            let end = self.border_at_most(target);
            shards.push(start..end);
            start = end;
        }
        Ok(shards)
    }

    /// Returns a view of the units in a range that [`Layout::shards`] returned.
    ///
    /// # Panics
    /// If the range does not begin and end at unit borders.
    pub fn shard(&self, range: Range<usize>) -> Shard<'_> {
        assert!(range.start <= range.end && range.end <= self.elements, "shard {range:?} lies outside");
        assert_eq!(range.start, self.border_at_most(range.start), "a shard begins at a unit");
        assert_eq!(range.end, self.border_at_most(range.end), "a shard ends at a unit");
        Shard { layout: self, range }
    }

    /// Copies tensors, given in slot order and row major, into unit order.
    ///
    /// # Panics
    /// If a tensor has another number of elements than its shape.
    pub fn gather(&self, tensors: &[Vec<f32>]) -> Vec<f32> {
        assert_eq!(tensors.len(), self.tensors.len(), "one tensor a shape");
        let mut flat = Vec::with_capacity(self.elements);
        for (index, (tensor, values)) in self.tensors.iter().zip(tensors).enumerate() {
            assert_eq!(values.len(), tensor.elements, "tensor {index} fits its shape");
            tensor.runs(|run| flat.extend_from_slice(&values[run]));
        }
        flat
    }

    /// Copies numbers in unit order back into tensors in slot order, row major.
    ///
    /// # Panics
    /// If there are not [`Layout::elements`] of them.
    pub fn scatter(&self, flat: &[f32]) -> Vec<Vec<f32>> {
        assert_eq!(flat.len(), self.elements, "as many numbers as the layout has elements");
        let mut rest = flat;
        self.tensors
            .iter()
            .map(|tensor| {
                let mut values = vec![0.0; tensor.elements];
                tensor.runs(|run| {
                    let (head, tail) = rest.split_at(run.len());
                    values[run].copy_from_slice(head);
                    rest = tail;
                });
                values
            })
            .collect()
    }

    /// Returns the last unit border that is not after this element.
    fn border_at_most(&self, element: usize) -> usize {
        if element >= self.elements {
            return self.elements;
        }
        // Empty tensors share their first element with the next one, which is the one found.
        let after = self.tensors.partition_point(|tensor| tensor.first_element <= element);
        let tensor = &self.tensors[after - 1];
        tensor.unit(tensor.unit_at(element)).start
    }
}

impl Tensor {
    /// Returns the elements of unit `index` of this tensor, in unit order.
    fn unit(&self, index: usize) -> Range<usize> {
        let (start, len) = match self.form {
            Form::Matrix { rows, columns } => {
                let across = columns.div_ceil(CHUNK);
                let (top, left) = (index / across * CHUNK, index % across * CHUNK);
                let (height, width) = (CHUNK.min(rows - top), CHUNK.min(columns - left));
                (top * columns + height * left, height * width)
            }
            Form::Vector => {
                let start = index * UNIT_ELEMENTS_MAX;
                (start, UNIT_ELEMENTS_MAX.min(self.elements - start))
            }
        };
        self.first_element + start..self.first_element + start + len
    }

    /// Returns the unit of this tensor that an element of it lies in.
    fn unit_at(&self, element: usize) -> usize {
        let element = element - self.first_element;
        match self.form {
            Form::Matrix { rows, columns } => {
                let band = element / (CHUNK * columns);
                let height = CHUNK.min(rows - band * CHUNK);
                let within = element - band * CHUNK * columns;
                band * columns.div_ceil(CHUNK) + within / (height * CHUNK)
            }
            Form::Vector => element / UNIT_ELEMENTS_MAX,
        }
    }

    /// Visits, in unit order, the stretches that are consecutive in row-major order too.
    fn runs(&self, mut visit: impl FnMut(Range<usize>)) {
        match self.form {
            Form::Matrix { rows, columns } => {
                for top in (0..rows).step_by(CHUNK) {
                    for left in (0..columns).step_by(CHUNK) {
                        let width = CHUNK.min(columns - left);
                        for row in top..rows.min(top + CHUNK) {
                            visit(row * columns + left..row * columns + left + width);
                        }
                    }
                }
            }
            Form::Vector => visit(0..self.elements),
        }
    }
}

/// Some consecutive units of a layout. Ranges of elements are counted from the shard's own start.
#[derive(Clone, Debug)]
pub struct Shard<'a> {
    layout: &'a Layout,
    range: Range<usize>,
}

impl<'a> Shard<'a> {
    /// Returns how many numbers the shard has.
    pub fn elements(&self) -> usize {
        self.range.len()
    }

    /// Returns the shard's parts of the tensors it touches, in order.
    pub fn pieces(&self) -> impl Iterator<Item = Piece<'a>> + use<'a> {
        let (layout, range) = (self.layout, self.range.clone());
        let first = layout.tensors.partition_point(|tensor| tensor.first_element <= range.start);
        let first = first.saturating_sub(1);
        layout.tensors[first..]
            .iter()
            .take_while({
                let end = range.end;
                move |tensor| tensor.first_element < end
            })
            .filter_map(move |tensor| {
                let start = range.start.max(tensor.first_element);
                let end = range.end.min(tensor.first_element + tensor.elements);
                (start < end).then(|| Piece {
                    tensor,
                    units: tensor.unit_at(start)..tensor.unit_at(end - 1) + 1,
                    origin: range.start,
                })
            })
    }

    /// Returns the ranges of all units, in order.
    pub fn units(&self) -> impl Iterator<Item = Range<usize>> + use<'a> {
        self.pieces().flat_map(|piece| piece.units())
    }
}

/// The units of one tensor that lie in one shard.
#[derive(Clone, Debug)]
pub struct Piece<'a> {
    tensor: &'a Tensor,
    units: Range<usize>,
    origin: usize,
}

impl<'a> Piece<'a> {
    /// Returns how the tensor is cut.
    pub fn form(&self) -> Form {
        self.tensor.form
    }

    /// Returns the ranges of the units, in order, counted from the shard's start.
    pub fn units(&self) -> impl Iterator<Item = Range<usize>> + use<'a> {
        let (tensor, origin) = (self.tensor, self.origin);
        self.units.clone().map(move |unit| {
            let range = tensor.unit(unit);
            range.start - origin..range.end - origin
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shapes() -> Vec<Vec<usize>> {
        vec![
            vec![130, 70],
            vec![5],
            vec![0, 9],
            vec![64, 128],
            vec![],
            vec![9000],
            vec![3, 2, 2],
            vec![1, 65],
        ]
    }

    fn numbered(shapes: &[Vec<usize>]) -> Vec<Vec<f32>> {
        let mut next = 0;
        let mut tensor = |shape: &Vec<usize>| {
            let elements: usize = shape.iter().product();
            let numbers = (next..next + elements).map(|number| number as f32).collect();
            next += elements;
            numbers
        };
        shapes.iter().map(&mut tensor).collect()
    }

    #[test]
    fn gathering_and_scattering_are_inverse() {
        let layout = Layout::new(&shapes());
        let tensors = numbered(&shapes());
        let flat = layout.gather(&tensors);
        assert_eq!(flat.len(), layout.elements());
        assert_eq!(layout.scatter(&flat), tensors);
    }

    #[test]
    fn a_unit_is_a_chunk_of_its_matrix() {
        let (rows, columns) = (130, 70);
        let layout = Layout::new(&[vec![rows, columns]]);
        let flat = layout.gather(&numbered(&[vec![rows, columns]]));
        let units: Vec<_> = layout.shard(0..layout.elements()).units().collect();
        assert_eq!(units.len(), 6);
        assert_eq!(units.len(), layout.units());
        let lengths: Vec<_> = units.iter().map(Range::len).collect();
        assert_eq!(lengths, [64 * 64, 64 * 6, 64 * 64, 64 * 6, 2 * 64, 2 * 6]);
        for (unit, range) in units.into_iter().enumerate() {
            let (top, left) = (unit / 2 * 64, unit % 2 * 64);
            let width = 64.min(columns - left);
            for (offset, &number) in flat[range].iter().enumerate() {
                let (row, column) = (top + offset / width, left + offset % width);
                assert_eq!(number, (row * columns + column) as f32, "unit {unit}");
            }
        }
    }

    #[test]
    fn shards_cover_all_at_unit_borders_and_follow_their_shares() {
        let layout = Layout::new(&shapes());
        let borders: Vec<usize> =
            layout.shard(0..layout.elements()).units().map(|unit| unit.end).chain([0]).collect();
        assert_eq!(borders.len(), layout.units() + 1);
        for shares in
            [vec![65536], vec![0, 65536, 0], vec![20_000, 25_536, 20_000], vec![1; 65536], vec![32_768; 2]]
        {
            let shards = layout.shards(&shares).expect("they sum up");
            let mut start = 0;
            for (shard, &share) in shards.iter().zip(&shares) {
                assert_eq!(shard.start, start);
                assert!(borders.contains(&shard.end));
                assert!(share > 0 || shard.is_empty());
                let target = layout.elements() as f64 * f64::from(share) / 65536.0;
                assert!((shard.len() as f64 - target).abs() <= UNIT_ELEMENTS_MAX as f64);
                let units = layout.shard(shard.clone()).units().map(|unit| unit.len()).sum::<usize>();
                assert_eq!(units, shard.len());
                start = shard.end;
            }
            assert_eq!(start, layout.elements());
        }
    }

    #[test]
    fn shares_that_do_not_sum_up_are_refused() {
        let layout = Layout::new(&shapes());
        for shares in [vec![], vec![65535], vec![65536, 1], vec![u32::MAX; 3]] {
            let error = layout.shards(&shares).expect_err("a wrong sum");
            assert!(error.to_string().contains("expected 65536"), "{error}");
        }
    }

    #[test]
    fn layouts_of_other_shapes_have_other_digests() {
        let digests: std::collections::BTreeSet<_> = [
            vec![vec![2, 3]],
            vec![vec![3, 2]],
            vec![vec![6]],
            vec![vec![6], vec![0]],
            vec![vec![2], vec![4]],
        ]
        .iter()
        .map(|shapes| Layout::new(shapes).digest())
        .collect();
        assert_eq!(digests.len(), 5);
    }

    #[test]
    fn a_stage_without_elements_has_empty_shards() {
        let layout = Layout::new(&[vec![0, 4]]);
        assert_eq!(layout.shards(&[30_000, 35_536]).expect("they sum up"), [0..0, 0..0]);
        assert_eq!(layout.shard(0..0).units().count(), 0);
    }
}
