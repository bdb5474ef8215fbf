//! Handlers of XLA custom calls, by name.

use super::api::{CallFrame, Error as XlaError, Handler, dtype};
use super::call::{Array, Call, enter};
use super::interaction::interaction;
use super::parallel::for_each;
use crate::bf16::{Bf16, Matrix};
use crate::cache::{DType, registry};
use crate::error::{Error, Result};
use crate::lsh::{self, Kind, Level, Sequence, SimTier};
use crate::sync::plain::{Mutex, PoisonError};
use crate::top_k::top_k;
use std::ffi::c_int;
use std::ops::DerefMut;

/// Handlers by the names under which programs call them.
pub const TARGETS: [(&str, Handler); 5] = [
    ("aif_simtier", aif_simtier),
    ("aif_table_sum", aif_table_sum),
    ("aif_gather_rows", aif_gather_rows),
    ("aif_interaction", aif_interaction),
    ("aif_top_k", aif_top_k),
];

/// Bytes that kernels process in about a hundred microseconds: the size of a piece of shared work, large
/// enough to amortise its dispatch.
const PIECE_BYTES: usize = 2 << 20;

/// Bytes of rows gathered in the same time.
const GATHERED_BYTES: usize = 512 << 10;

unsafe extern "C" fn aif_simtier(frame: *mut CallFrame) -> *mut XlaError {
    // SAFETY: XLA calls handlers with its frames.
    unsafe { enter(frame, simtier) }
}

unsafe extern "C" fn aif_table_sum(frame: *mut CallFrame) -> *mut XlaError {
    // SAFETY: as above.
    unsafe { enter(frame, table_sum) }
}

unsafe extern "C" fn aif_gather_rows(frame: *mut CallFrame) -> *mut XlaError {
    // SAFETY: as above.
    unsafe { enter(frame, gather_rows) }
}

unsafe extern "C" fn aif_interaction(frame: *mut CallFrame) -> *mut XlaError {
    // SAFETY: as above.
    unsafe { enter(frame, interaction) }
}

unsafe extern "C" fn aif_top_k(frame: *mut CallFrame) -> *mut XlaError {
    // SAFETY: as above.
    unsafe { enter(frame, best) }
}

/// `candidates u8[..., N, w], sequence u8[..., L, w], channel i32[..., L], edges i32[..., E]`
/// -> `i32[..., N, channels, E + 1]`; attributes `channels`, `kind`.
fn simtier(call: &mut Call<'_>) -> Result<()> {
    call.expect(4, 1)?;
    let (channels, kind) = (
        call.integer("channels")?,
        Kind::from_name(call.string("kind")?)?,
    );
    let level = Level::chosen()?;
    let [candidates, sequence, channel, edges] = &call.operands[..] else {
        unreachable!("counted")
    };
    let runtime = call.runtime;
    let out = &mut call.results[0];
    let (lead, &[count, out_channels, tiers]) = split(out, "counts")?;
    let (candidates_lead, &[n, width]) = split(candidates, "cand")?;
    let (sequence_lead, &[length, sequence_width]) = split(sequence, "seq")?;
    let (channel_lead, &[channel_length]) = split(channel, "channel")?;
    let (edges_lead, &[edge_count]) = split(edges, "edges")?;
    let expected = (n, channels, edge_count + 1, width, length);
    if (count, out_channels, tiers, sequence_width, channel_length) != expected {
        return Err(Error::Request(format!(
            "simtier: cand {:?}, seq {:?}, channel {:?}, edges {:?} and {channels} channels do not make counts {:?}",
            candidates.dims, sequence.dims, channel.dims, edges.dims, out.dims
        )));
    }
    let batches: usize = lead.iter().product();
    let candidates_at = Broadcast::new("cand", candidates_lead, lead)?;
    let sequence_at = Broadcast::new("seq", sequence_lead, lead)?;
    let channel_at = Broadcast::new("channel", channel_lead, lead)?;
    let edges_at = Broadcast::new("edges", edges_lead, lead)?;
    let (candidates, signatures) = (
        candidates.slice::<u8>("cand")?,
        sequence.slice::<u8>("seq")?,
    );
    let (channel, edges) = (
        channel.slice::<i32>("channel")?,
        edges.slice::<i32>("edges")?,
    );
    let prepare = |batch: usize| {
        let sequence = Sequence {
            kind,
            width,
            signatures: part(signatures, sequence_at.index(batch), length * width),
            channel: part(channel, channel_at.index(batch), length),
            channels,
            edges: part(edges, edges_at.index(batch), edge_count),
        };
        SimTier::new(level, &sequence)
    };
    // A sequence shared by all candidates is packed once and its candidates are divided; of many, each is a
    // piece of its own.
    let one = sequence_at.constant && channel_at.constant && edges_at.constant;
    let shared = if one && batches > 0 {
        Some(prepare(0)?)
    } else {
        None
    };
    let per_piece = if one {
        (PIECE_BYTES / (length * width).max(1)).clamp(16, n.max(16))
    } else {
        n.max(1)
    };
    let per_candidate = channels * tiers;
    let mut pieces = Vec::new();
    for (batch, out) in
        batched(out.slice_mut::<i32>("counts")?, n * per_candidate, batches).enumerate()
    {
        let candidates = part(candidates, candidates_at.index(batch), n * width);
        let candidates = candidates.chunks(per_piece * width);
        for (candidates, out) in candidates.zip(out.chunks_mut(per_piece * per_candidate)) {
            pieces.push(Mutex::new((batch, candidates, out)));
        }
    }
    let failed = Mutex::new(None);
    for_each(runtime, pieces.len(), &|piece| {
        let mut piece = lock(&pieces[piece]);
        let (batch, candidates, out) = &mut *piece;
        match &shared {
            Some(ready) => ready.count(candidates, out),
            None => match prepare(*batch) {
                Ok(ready) => ready.count(candidates, out),
                Err(error) => *lock(&failed) = Some(error),
            },
        }
    });
    lock(&failed).take().map_or(Ok(()), Err)
}

/// `table f32[..., g, 2^bits, h]` or bf16, `signatures u8[..., N, w]` -> `f32[..., N, h]`; attribute `bits`.
fn table_sum(call: &mut Call<'_>) -> Result<()> {
    call.expect(2, 1)?;
    let bits = call.integer("bits")?;
    let level = Level::chosen()?;
    let [table, signatures] = &call.operands[..] else {
        unreachable!("counted")
    };
    let runtime = call.runtime;
    let out = &mut call.results[0];
    let (lead, &[count, out_width]) = split(out, "sums")?;
    let (table_lead, &[groups, codes, width]) = split(table, "table")?;
    let (signatures_lead, &[n, signature_bytes]) = split(signatures, "sig")?;
    if (count, out_width) != (n, width) {
        return Err(Error::Request(format!(
            "table_sum: table {:?} and sig {:?} do not make sums {:?}",
            table.dims, signatures.dims, out.dims
        )));
    }
    let batches: usize = lead.iter().product();
    let table_at = Broadcast::new("table", table_lead, lead)?;
    let signatures_at = Broadcast::new("sig", signatures_lead, lead)?;
    let (table, signatures) = (matrix(table, "table")?, signatures.slice::<u8>("sig")?);
    let per_piece = (PIECE_BYTES / (groups * width * size_of::<f32>()).max(1)).clamp(16, n.max(16));
    let mut pieces = Vec::new();
    for (batch, out) in batched(out.slice_mut::<f32>("sums")?, n * width, batches).enumerate() {
        let size = groups * codes * width;
        let table = table.part(table_at.index(batch) * size, size);
        let signatures = part(signatures, signatures_at.index(batch), n * signature_bytes);
        let signatures = signatures.chunks((per_piece * signature_bytes).max(1));
        for (signatures, out) in signatures.zip(out.chunks_mut((per_piece * width).max(1))) {
            pieces.push(Mutex::new((table, signatures, out)));
        }
    }
    let failed = Mutex::new(None);
    for_each(runtime, pieces.len(), &|piece| {
        let mut piece = lock(&pieces[piece]);
        let (table, signatures, out) = &mut *piece;
        let summed = lsh::table_sum(level, bits, *table, signature_bytes, signatures, width, out);
        if let Err(error) = summed {
            *lock(&failed) = Some(error);
        }
    });
    lock(&failed).take().map_or(Ok(()), Err)
}

/// `scores f32[..., N]` -> `f32[..., k], i32[..., k]`: the highest, and their indices.
fn best(call: &mut Call<'_>) -> Result<()> {
    call.expect(1, 2)?;
    let scores = &call.operands[0];
    let [best, order] = &mut call.results[..] else {
        unreachable!("counted")
    };
    let (lead, &[n]) = split(scores, "scores")?;
    let (best_lead, &[k]) = split(best, "best")?;
    if best_lead != lead || order.dims != best.dims || k > n || i32::try_from(n).is_err() {
        return Err(Error::Request(format!(
            "top_k: scores {:?} do not make the best {:?} and their indices {:?}",
            scores.dims, best.dims, order.dims
        )));
    }
    let scores = scores.slice::<f32>("scores")?.chunks_exact(n.max(1));
    let best = best.slice_mut::<f32>("best")?.chunks_exact_mut(k.max(1));
    let order = order.slice_mut::<i32>("order")?.chunks_exact_mut(k.max(1));
    for ((scores, best), order) in scores.zip(best).zip(order) {
        top_k(scores, best, order);
    }
    Ok(())
}

/// `handle u32[..., 2], ids u32[..., N, 2]` -> one array `[..., N, *shape]` a column, and
/// `found bool[..., N]`; attribute `columns`, their names with commas between. A handle of 0 names
/// no cache: nothing is found.
fn gather_rows(call: &mut Call<'_>) -> Result<()> {
    call.expect(2, call.results.len().max(1))?;
    let names = call.string("columns")?;
    let [handle, ids] = &call.operands[..] else {
        unreachable!("counted")
    };
    let &[low, high] = handle.slice::<u32>("handle")? else {
        return Err(Error::Request(format!(
            "gather_rows: handle has shape {:?}, expected [2]; one call reads one cache",
            handle.dims
        )));
    };
    let whole = |low: u32, high: u32| u64::from(high) << 32 | u64::from(low);
    let handle = whole(low, high);
    if handle == 0 {
        for array in &mut *call.results {
            let size = bytes_of(array.dtype)?;
            array.bytes_mut(size).fill(0);
        }
        return Ok(());
    }
    let cache = registry::resolve(handle).ok_or(Error::StaleHandle(handle))?;
    let Some((&2, lead)) = ids.dims.split_last() else {
        return Err(Error::Request(format!(
            "gather_rows: ids has shape {:?}, expected [..., N, 2]",
            ids.dims
        )));
    };
    let layout = cache.layout();
    let Some((found, columns)) = call.results.split_last_mut() else {
        unreachable!("counted")
    };
    let same = columns.len() == layout.columns().len()
        && names
            .split(',')
            .eq(layout.columns().iter().map(crate::cache::Column::name))
        && columns.iter().zip(layout.columns()).all(|(array, column)| {
            array.dtype == xla_dtype(column.dtype())
                && array
                    .dims
                    .strip_prefix(lead)
                    .is_some_and(|shape| shape == column.shape())
        });
    if !same || found.dtype != dtype::PRED || found.dims != lead {
        let shapes: Vec<_> = columns.iter().map(|array| &array.dims).collect();
        return Err(Error::Layout(format!(
            "gather_rows: the program was made for columns {names} of shapes {shapes:?}, and the cache of this \
             handle has {layout:?}; compile it with the layout of the cache"
        )));
    }
    let keys: Vec<u64> = ids
        .slice::<u32>("ids")?
        .as_chunks()
        .0
        .iter()
        .map(|&[l, h]| whole(l, h))
        .collect();
    // Gathering row by row waits for memory, which several threads can do at once.
    let per_piece = (GATHERED_BYTES / layout.payload_bytes()).max(64);
    let mut columns: Vec<_> = columns
        .iter_mut()
        .zip(layout.columns())
        .map(|(array, column)| {
            array
                .bytes_mut(column.dtype().size())
                .chunks_mut(per_piece * column.bytes())
        })
        .collect();
    let found = found.bytes_mut(1).chunks_mut(per_piece);
    let pieces: Vec<_> = keys
        .chunks(per_piece)
        .zip(found)
        .map(|(keys, found)| {
            let outs: Vec<&mut [u8]> = columns.iter_mut().filter_map(Iterator::next).collect();
            Mutex::new((keys, outs, found))
        })
        .collect();
    let failed = Mutex::new(None);
    for_each(call.runtime, pieces.len(), &|piece| {
        let mut piece = lock(&pieces[piece]);
        let (keys, outs, found) = &mut *piece;
        if let Err(error) = cache.gather_into(keys, outs, found) {
            *lock(&failed) = Some(error);
        }
    });
    lock(&failed).take().map_or(Ok(()), Err)
}

fn xla_dtype(dtype: DType) -> c_int {
    match dtype {
        DType::Float32 => dtype::F32,
        DType::BFloat16 => dtype::BF16,
        DType::Float16 => dtype::F16,
        DType::Int8 => dtype::S8,
        DType::UInt8 => dtype::U8,
        DType::Int32 => dtype::S32,
        DType::UInt32 => dtype::U32,
    }
}

/// Returns the bytes of one element of a column or of a mask.
fn bytes_of(given: c_int) -> Result<usize> {
    if given == dtype::PRED {
        return Ok(1);
    }
    DType::ALL
        .into_iter()
        .find(|&each| xla_dtype(each) == given)
        .map(DType::size)
        .ok_or_else(|| Error::Request(format!("gather_rows: XLA type {given} is no column's")))
}

/// Splits the dimensions of an array into the batch axes and the last `N`.
fn split<'a, const N: usize>(
    array: &'a Array<'_>,
    name: &str,
) -> Result<(&'a [usize], &'a [usize; N])> {
    array.dims.split_last_chunk::<N>().ok_or_else(|| {
        Error::Request(format!(
            "{name}: shape {:?}, expected at least {N} axes",
            array.dims
        ))
    })
}

/// Returns part `index` of `values`, in parts of `size`.
fn part<T>(values: &[T], index: usize, size: usize) -> &[T] {
    &values[index * size..][..size]
}

/// Splits `values` into `count` parts of `size`, which may be 0.
fn batched<T>(mut values: &mut [T], size: usize, count: usize) -> impl Iterator<Item = &mut [T]> {
    (0..count).map(move |_| {
        let (part, rest) = std::mem::take(&mut values).split_at_mut(size);
        values = rest;
        part
    })
}

/// Locks a piece or an error, neither of which a panic elsewhere can have left half-changed.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> impl DerefMut<Target = T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads an operand as a matrix of floats.
pub(super) fn matrix<'call>(array: &Array<'call>, name: &str) -> Result<Matrix<'call>> {
    if array.is::<Bf16>() {
        return Ok(Matrix::Bf16(array.slice(name)?));
    }
    Ok(Matrix::F32(array.slice(name)?))
}

/// Offsets of an operand's part for each batch, when its batch axes of size 1 are broadcast.
struct Broadcast {
    /// Size of each batch axis of the result, and the operand's step along it; last axis first.
    axes: Vec<(usize, usize)>,
    /// Returns whether all batches share one part.
    constant: bool,
}

impl Broadcast {
    fn new(name: &str, operand: &[usize], result: &[usize]) -> Result<Self> {
        let fits = operand.len() == result.len()
            && operand
                .iter()
                .zip(result)
                .all(|(&size, &whole)| size == 1 || size == whole);
        if !fits {
            return Err(Error::Request(format!(
                "{name}: batch axes {operand:?} do not match those of the result, {result:?}"
            )));
        }
        let mut step = 1;
        let axes: Vec<_> = operand
            .iter()
            .zip(result)
            .rev()
            .map(|(&size, &whole)| {
                let axis = (whole, if size == 1 { 0 } else { step });
                step *= size;
                axis
            })
            .collect();
        Ok(Self {
            constant: axes.iter().all(|&(_, step)| step == 0),
            axes,
        })
    }

    fn index(&self, mut batch: usize) -> usize {
        let mut index = 0;
        for &(size, step) in &self.axes {
            index += batch % size * step;
            batch /= size;
        }
        index
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batch_axes_of_size_one_repeat() {
        let at = |operand: &[usize], result: &[usize]| -> Vec<usize> {
            let broadcast = Broadcast::new("x", operand, result).unwrap();
            (0..result.iter().product())
                .map(|batch| broadcast.index(batch))
                .collect()
        };
        assert_eq!(at(&[], &[]), [0]);
        assert_eq!(at(&[2, 3], &[2, 3]), [0, 1, 2, 3, 4, 5]);
        assert_eq!(at(&[1, 3], &[2, 3]), [0, 1, 2, 0, 1, 2]);
        assert_eq!(at(&[2, 1], &[2, 3]), [0, 0, 0, 1, 1, 1]);
        assert_eq!(at(&[1, 1], &[2, 2]), [0; 4]);
        assert!(Broadcast::new("x", &[1, 1], &[2, 2]).unwrap().constant);
        assert!(!Broadcast::new("x", &[1, 2], &[2, 2]).unwrap().constant);
        assert!(Broadcast::new("x", &[2], &[3]).is_err());
        assert!(Broadcast::new("x", &[3], &[1, 3]).is_err());
    }
}
