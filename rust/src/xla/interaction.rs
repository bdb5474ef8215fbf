//! `aif_interaction`: item ids to logits in one call.

use super::call::{Array, Call};
use super::handlers::{lock, matrix};
use super::parallel::for_each_after;
use crate::cache::{EmbeddingCache, registry};
use crate::error::{Error, Result};
use crate::interaction::{
    Interaction, Layer, Model, PairFeatures, Scratch, SlotFactors, Table, TierScale, Tiers,
};
use crate::lsh::{Kind, Level, Sequence};
use crate::sync::plain::{Arc, Mutex, OnceLock};
use std::cell::RefCell;

/// Candidates claimed together: enough that the claim is negligible, and few enough that threads end at
/// nearly the same time.
const PIECE: usize = 192;

/// Operands before those of the layers.
const OPERANDS: usize = 16;

/// Index of the pair features among them.
const PAIR: usize = 14;

thread_local! {
    /// Scratch memory for blocks of candidates, kept because the system must zero new pages.
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Operands: `handle u32[2], missing u32[2], ids u32[N, 2], count i32[], shared f32[h], factors [R, h],
/// slot_category i32[C], slots [C, h], edges i32[T - 1], sequence u8[L, w], channel i32[L], lengths
/// f32[channels], tier_weights f32[channels * T, h], table f32[g, 2^bits, h], pair f32[N, P], pair_weights
/// f32[P, h]`, then `weights f32[n, m], bias f32[m]` of each further layer; factors, slots and table are f32 or
/// bf16.
///
/// Results: `f32[N, outputs], status u8[N]`. Attributes: `factored` (names with commas between), `kind`
/// (empty: no tiers), `scale`, `bits` (0: no table), `first_category`.
pub(super) fn interaction(call: &mut Call<'_>) -> Result<()> {
    let layers = call.operands.len().saturating_sub(OPERANDS) / 2;
    call.expect(OPERANDS + 2 * layers, 2)?;
    let level = Level::chosen()?;
    let model = model(call)?;
    let [handle, missing, ids, count, ..] = &call.operands[..] else {
        unreachable!("counted")
    };
    let &[n, 2] = &ids.dims[..] else {
        return Err(Error::Request(format!(
            "interaction: ids has shape {:?}, expected [N, 2]",
            ids.dims
        )));
    };
    let &[real] = count.slice::<i32>("count")? else {
        return Err(Error::Request(format!(
            "interaction: count has shape {:?}, expected []",
            count.dims
        )));
    };
    let real = usize::try_from(real)
        .ok()
        .filter(|&real| real <= n)
        .ok_or_else(|| {
            Error::Request(format!(
                "interaction: count is {real}, expected 0 to {n}, the number of ids"
            ))
        })?;
    let pair = call.operands[PAIR].slice::<f32>("pair")?;
    let keys: Vec<u64> = ids.slice::<u32>("ids")?.as_chunks().0[..real]
        .iter()
        .map(|&[low, high]| u64::from(high) << 32 | u64::from(low))
        .collect();
    let outputs = model.outputs();
    let (handle, missing) = (
        resolve_handle(handle, "handle")?,
        resolve_handle(missing, "missing")?,
    );
    let [logits, status] = &mut call.results[..] else {
        unreachable!("counted")
    };
    if logits.dims != [n, outputs] || status.dims != [n] || pair.len() != n * model.pair.width {
        return Err(Error::Request(format!(
            "interaction: {n} ids, {} pair features and {outputs} outputs do not make logits {:?} and status \
             {:?}",
            pair.len(),
            logits.dims,
            status.dims
        )));
    }
    let (logits, padding) = logits
        .slice_mut::<f32>("logits")?
        .split_at_mut(real * outputs);
    padding.fill(0.0);
    let (status, padding) = status.slice_mut::<u8>("status")?.split_at_mut(real);
    padding.fill(0);
    let Some(cache) = handle else {
        // A program is run once without a cache when it is warmed or checked.
        return if real == 0 {
            Ok(())
        } else {
            Err(Error::Request(format!(
                "interaction: {real} candidates, and handle 0, which names no cache"
            )))
        };
    };
    let missing = missing
        .map(|other| fallback_row(&other, &cache))
        .transpose()?;
    // Packed while the helpers wake up, which takes as long.
    let ready = OnceLock::new();
    let prepare = || {
        let interaction = Interaction::new(level, &model, &cache)?;
        drop(ready.set(interaction));
        Ok(())
    };
    let width = model.pair.width;
    let pieces: Vec<_> = keys
        .chunks(PIECE)
        .zip(logits.chunks_mut(PIECE * outputs))
        .zip(status.chunks_mut(PIECE))
        .enumerate()
        .map(|(number, ((keys, logits), status))| {
            let pair = &pair[number * PIECE * width..][..keys.len() * width];
            Mutex::new((keys, pair, logits, status))
        })
        .collect();
    let failed = Mutex::new(None);
    for_each_after(call.runtime, pieces.len(), prepare, &|piece| {
        let interaction: &Interaction<'_> = ready.get().expect("prepared before any piece");
        let mut piece = lock(&pieces[piece]);
        let (keys, pair, logits, status) = &mut *piece;
        let missing = missing.as_deref();
        let scored = SCRATCH.with_borrow_mut(|scratch| {
            interaction.score(&cache, keys, pair, missing, scratch, logits, status)
        });
        if let Err(error) = scored {
            *lock(&failed) = Some(error);
        }
    })?;
    lock(&failed).take().map_or(Ok(()), Err)
}

/// Reads the operands that all candidates share.
fn model<'call>(call: &Call<'call>) -> Result<Model<'call>> {
    let (fixed, further) = call.operands.split_at(OPERANDS);
    let [
        _,
        _,
        _,
        _,
        shared,
        factors,
        slot_category,
        slots,
        edges,
        sequence,
        channel,
        lengths,
        tier_weights,
        table,
        pair,
        pair_weights,
    ] = fixed
    else {
        unreachable!("counted")
    };
    let shared = shared.slice::<f32>("shared")?;
    let (kind, bits) = (call.string("kind")?, call.integer("bits")?);
    let tiers = if kind.is_empty() {
        None
    } else {
        let lengths = lengths.slice::<f32>("lengths")?;
        Some(Tiers {
            sequence: Sequence {
                kind: Kind::from_name(kind)?,
                width: sequence.dims.last().copied().unwrap_or(0),
                signatures: sequence.slice::<u8>("sequence")?,
                channel: channel.slice::<i32>("channel")?,
                channels: lengths.len(),
                edges: edges.slice::<i32>("edges")?,
            },
            lengths,
            scale: TierScale::from_name(call.string("scale")?)?,
            weights: tier_weights.slice::<f32>("tier_weights")?,
        })
    };
    let category = slot_category.slice::<i32>("slot_category")?;
    let slots = if category.is_empty() {
        None
    } else {
        Some(SlotFactors {
            category,
            rows: matrix(slots, "slots")?,
            first_category: i32::try_from(call.integer("first_category")?).unwrap_or(i32::MAX),
        })
    };
    let table = if bits == 0 {
        None
    } else {
        Some(Table {
            bits,
            values: matrix(table, "table")?,
            width: table.dims.last().copied().unwrap_or(0),
        })
    };
    let layers = further.chunks_exact(2).map(|layer| {
        Ok(Layer {
            weights: layer[0].slice::<f32>("layer weights")?,
            bias: layer[1].slice::<f32>("layer bias")?,
        })
    });
    Ok(Model {
        hidden: shared.len(),
        shared,
        factored: call
            .string("factored")?
            .split(',')
            .filter(|name| !name.is_empty())
            .collect(),
        factors: matrix(factors, "factors")?,
        slots,
        table,
        tiers,
        pair: PairFeatures {
            width: pair.dims.last().copied().unwrap_or(0),
            weights: pair_weights.slice::<f32>("pair_weights")?,
        },
        layers: layers.collect::<Result<_>>()?,
    })
}

/// Returns the row that stands in for missing ones: the row of key 0 in `other`.
fn fallback_row(other: &EmbeddingCache, cache: &EmbeddingCache) -> Result<Vec<u8>> {
    let mut found = None;
    other.read_rows(&[0], |_, row| found = row.map(<[u8]>::to_vec));
    found.filter(|_| other.layout() == cache.layout()).ok_or_else(|| {
        Error::Layout(
            "interaction: the cache of missing rows must have one under key 0, of the index's layout".into(),
        )
    })
}

/// Returns the cache of a handle; `None` for handle 0.
fn resolve_handle(handle: &Array<'_>, name: &str) -> Result<Option<Arc<EmbeddingCache>>> {
    let &[low, high] = handle.slice::<u32>(name)? else {
        return Err(Error::Request(format!(
            "interaction: {name} has shape {:?}, expected [2]",
            handle.dims
        )));
    };
    match u64::from(high) << 32 | u64::from(low) {
        0 => Ok(None),
        handle => registry::resolve(handle)
            .ok_or(Error::StaleHandle(handle))
            .map(Some),
    }
}
