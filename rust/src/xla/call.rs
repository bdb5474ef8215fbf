//! Decoding and checking of one call by XLA, and the return of its outcome.

use super::api::{
    ATTRIBUTE_SCALAR, ATTRIBUTE_STRING, Api, Attributes, BUFFER, Buffer, ByteSpan, CallFrame,
    EXTENSION_METADATA, Error as XlaError, ErrorCreateArgs, ExecutionContext, FAILED_PRECONDITION,
    INTERNAL, INVALID_ARGUMENT, Metadata, MetadataExtension, STAGE_EXECUTE, Scalar, Values, dtype,
};
use crate::bf16::Bf16;
use crate::error::{Error, Result};
use std::ffi::{CString, c_int, c_void};
use std::marker::PhantomData;
use std::mem::offset_of;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::null_mut;

/// Element types of readable and writable buffers.
///
/// # Safety
/// `DTYPE` must be XLA's number of a type with the same size, alignment and valid bit patterns.
pub(super) unsafe trait Element {
    /// XLA's number of the type.
    const DTYPE: c_int;
}

// SAFETY: XLA's U8, U32, S32 and F32 are these types.
unsafe impl Element for u8 {
    const DTYPE: c_int = dtype::U8;
}
// SAFETY: as above.
unsafe impl Element for u32 {
    const DTYPE: c_int = dtype::U32;
}
// SAFETY: as above.
unsafe impl Element for i32 {
    const DTYPE: c_int = dtype::S32;
}
// SAFETY: as above.
unsafe impl Element for f32 {
    const DTYPE: c_int = dtype::F32;
}
// SAFETY: XLA's BF16 is the upper half of a binary32, in two bytes.
unsafe impl Element for Bf16 {
    const DTYPE: c_int = dtype::BF16;
}

/// Operand or result of a call.
///
/// Invariant: `data` is valid for `bytes` bytes during the call; if it is a result, also for writing, with
/// exclusive access.
#[derive(Debug)]
pub(super) struct Array<'call> {
    /// `XLA_FFI_DataType` of its elements.
    pub dtype: c_int,
    /// Its dimensions.
    pub dims: Vec<usize>,
    elements: usize,
    data: *mut u8,
    call: PhantomData<&'call ()>,
}

impl<'call> Array<'call> {
    /// Reads the description of a buffer.
    ///
    /// # Safety
    /// `buffer` points to an `XLA_FFI_Buffer` whose data lives for `'call`, with exclusive access if it is
    /// a result.
    unsafe fn decode(buffer: *mut c_void) -> Result<Self> {
        // SAFETY: by the caller's contract.
        let buffer = unsafe { &*buffer.cast::<Buffer>() };
        let rank = usize::try_from(buffer.rank).unwrap_or(0);
        let dims = if rank == 0 {
            Vec::new()
        } else {
            // SAFETY: the buffer has `rank` dimensions, so its list of them is that long.
            let dims = unsafe { std::slice::from_raw_parts(buffer.dims, rank) };
            dims.iter()
                .map(|&dim| usize::try_from(dim).unwrap_or(0))
                .collect()
        };
        let elements = dims
            .iter()
            .try_fold(1usize, |elements, &dim| elements.checked_mul(dim))
            .ok_or_else(|| Error::Request(format!("a buffer of {dims:?} is larger than memory")))?;
        Ok(Self {
            dtype: buffer.dtype,
            dims,
            elements,
            data: buffer.data.cast(),
            call: PhantomData,
        })
    }

    /// Returns whether its elements are of type `T`.
    pub fn is<T: Element>(&self) -> bool {
        self.dtype == T::DTYPE
    }

    /// Returns its elements, if they are of type `T`; `name` names it in the error.
    pub fn slice<T: Element>(&self, name: &str) -> Result<&'call [T]> {
        let start = self.start::<T>(name)?;
        // SAFETY: by the invariant; `start` checked type, alignment and null. Results are read only through
        // `slice_mut`, because handlers get them mutably.
        Ok(unsafe { std::slice::from_raw_parts(start, self.elements) })
    }

    /// Returns a result's elements, if they are of type `T`; `name` names it in the error.
    pub fn slice_mut<T: Element>(&mut self, name: &str) -> Result<&mut [T]> {
        let start = self.start::<T>(name)?;
        // SAFETY: as above, and `&mut self` makes the view exclusive.
        Ok(unsafe { std::slice::from_raw_parts_mut(start, self.elements) })
    }

    /// Returns a result's bytes, for elements of `size` bytes; the caller has checked the type.
    pub fn bytes_mut(&mut self, size: usize) -> &mut [u8] {
        if self.elements == 0 || self.data.is_null() {
            return &mut [];
        }
        // SAFETY: by the invariant the array has `elements` elements of its type, which is `size` bytes.
        unsafe { std::slice::from_raw_parts_mut(self.data, self.elements * size) }
    }

    fn start<T: Element>(&self, name: &str) -> Result<*mut T> {
        if self.dtype != T::DTYPE {
            return Err(Error::Request(format!(
                "{name}: XLA type {}, expected {} ({})",
                self.dtype,
                T::DTYPE,
                std::any::type_name::<T>()
            )));
        }
        if self.elements == 0 {
            return Ok(std::ptr::NonNull::dangling().as_ptr());
        }
        let start = self.data.cast::<T>();
        if start.is_null() || !start.is_aligned() {
            return Err(Error::Request(format!(
                "{name}: the buffer at {start:p} is null or not aligned"
            )));
        }
        Ok(start)
    }
}

/// Access to XLA's functions during a call.
#[derive(Clone, Copy)]
pub(super) struct Runtime {
    /// XLA's functions.
    pub api: *const Api,
    /// The call's context.
    pub context: *mut ExecutionContext,
}

/// Decoded call.
pub(super) struct Call<'call> {
    /// XLA's functions.
    pub runtime: Runtime,
    /// The operands.
    pub operands: Vec<Array<'call>>,
    /// Results to write.
    pub results: Vec<Array<'call>>,
    attributes: &'call Attributes,
}

impl<'call> Call<'call> {
    /// Checks and decodes a frame.
    ///
    /// # Safety
    /// `frame` points to a call frame of XLA that lives for `'call`, in the execute stage.
    unsafe fn decode(frame: *const CallFrame) -> Result<Self> {
        // SAFETY: by the caller's contract, and the size was checked by `enter`.
        let frame = unsafe { &*frame };
        // SAFETY: arrays of a frame in the execute stage are filled in and live as long as the call.
        let (operands, results) = unsafe { (arrays(&frame.args)?, arrays(&frame.rets)?) };
        let runtime = Runtime {
            api: frame.api,
            context: frame.context,
        };
        Ok(Self {
            runtime,
            operands,
            results,
            attributes: &frame.attributes,
        })
    }

    /// Checks the number of operands and the minimum number of results.
    pub fn expect(&self, operands: usize, results: usize) -> Result<()> {
        if self.operands.len() == operands && self.results.len() == results {
            return Ok(());
        }
        Err(Error::Request(format!(
            "the call has {} operands and {} results, expected {operands} and {results}",
            self.operands.len(),
            self.results.len()
        )))
    }

    /// Returns a non-negative 64-bit integer attribute.
    pub fn integer(&self, name: &str) -> Result<usize> {
        let value = self.attribute(name, ATTRIBUTE_SCALAR)?.cast::<Scalar>();
        // SAFETY: an attribute of this kind is an `XLA_FFI_Scalar`.
        let scalar = unsafe { &*value };
        if scalar.dtype != dtype::S64 {
            return Err(Error::Request(format!(
                "attribute {name}: XLA type {}, expected {} (int64)",
                scalar.dtype,
                dtype::S64
            )));
        }
        // SAFETY: a scalar of this type points to an int64.
        let value = unsafe { scalar.value.cast::<i64>().read_unaligned() };
        usize::try_from(value).map_err(|_| {
            Error::Request(format!(
                "attribute {name}: {value}, expected a number of at least 0"
            ))
        })
    }

    /// Returns a string attribute.
    pub fn string(&self, name: &str) -> Result<&'call str> {
        let value = self.attribute(name, ATTRIBUTE_STRING)?.cast::<ByteSpan>();
        // SAFETY: an attribute of this kind is an `XLA_FFI_ByteSpan`, alive during the call.
        std::str::from_utf8(unsafe { bytes(value) })
            .map_err(|error| Error::Request(format!("attribute {name}: {error}")))
    }

    fn attribute(&self, name: &str, kind: c_int) -> Result<*mut c_void> {
        for i in 0..usize::try_from(self.attributes.size).unwrap_or(0) {
            // SAFETY: the three lists are `size` long, and names are byte spans.
            let (found, found_kind, value) = unsafe {
                let name = bytes(*self.attributes.names.add(i));
                (
                    name,
                    *self.attributes.types.add(i),
                    *self.attributes.values.add(i),
                )
            };
            if found == name.as_bytes() && found_kind == kind {
                return Ok(value);
            }
        }
        Err(Error::Request(format!(
            "the call lacks attribute {name}, or it is of another type"
        )))
    }
}

/// # Safety
/// `span` points to a byte span that lives for `'call`.
unsafe fn bytes<'call>(span: *const ByteSpan) -> &'call [u8] {
    // SAFETY: by the caller's contract.
    let span = unsafe { &*span };
    if span.len == 0 {
        return &[];
    }
    // SAFETY: a span covers `len` bytes.
    unsafe { std::slice::from_raw_parts(span.start, span.len) }
}

/// # Safety
/// As [`Array::decode`], for every value.
unsafe fn arrays<'call>(values: &Values) -> Result<Vec<Array<'call>>> {
    (0..usize::try_from(values.size).unwrap_or(0))
        .map(|i| {
            // SAFETY: both lists are `size` long.
            let (kind, value) = unsafe { (*values.types.add(i), *values.values.add(i)) };
            if kind != BUFFER {
                return Err(Error::Request(format!(
                    "argument {i} is not a buffer but of kind {kind}"
                )));
            }
            // SAFETY: it is a buffer; the rest by the caller's contract.
            unsafe { Array::decode(value) }
        })
        .collect()
}

/// Entry of every handler: answers metadata queries, or runs `body`; never unwinds.
///
/// # Safety
/// `frame` is a call frame that XLA has passed to a handler.
pub(super) unsafe fn enter(
    frame: *mut CallFrame,
    body: fn(&mut Call<'_>) -> Result<()>,
) -> *mut XlaError {
    // SAFETY: `struct_size` and `extension` are the first fields of every version.
    let (size, mut extension) = unsafe { ((*frame).struct_size, (*frame).extension) };
    while !extension.is_null() {
        // SAFETY: a link of the chain that XLA passed; its kind determines its type.
        unsafe {
            if (*extension).kind == EXTENSION_METADATA {
                describe((*extension.cast::<MetadataExtension>()).metadata);
                return null_mut();
            }
            extension = (*extension).next;
        }
    }
    if size < offset_of!(CallFrame, attributes) + size_of::<Attributes>() {
        // Without these fields nothing can be reported or run.
        eprintln!(
            "aif_jax: XLA passed a call frame of {size} bytes, which belongs to no known version"
        );
        std::process::abort();
    }
    // SAFETY: covered by the size.
    let (api, stage) = unsafe { ((*frame).api, (*frame).stage) };
    if stage != STAGE_EXECUTE {
        return null_mut();
    }
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: by the caller's contract, and the stage is checked.
        body(&mut unsafe { Call::decode(frame) }?)
    }));
    let (code, text) = match outcome {
        Ok(Ok(())) => return null_mut(),
        Ok(Err(error)) => {
            let code = match error {
                Error::Config(_) | Error::Request(_) => INVALID_ARGUMENT,
                Error::Layout(_) | Error::StaleHandle(_) => FAILED_PRECONDITION,
                _ => INTERNAL,
            };
            (code, format!("aif_jax: {error}"))
        }
        Err(panic) => {
            let text = panic
                .downcast_ref::<&'static str>()
                .copied()
                .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
                .unwrap_or("a panic without a message");
            (
                INTERNAL,
                format!("aif_jax: a kernel panicked, which is a bug to report: {text}"),
            )
        }
    };
    // SAFETY: XLA's functions live as long as the process.
    unsafe { report(api, code, &text) }
}

/// Reports the version of the interface to XLA.
///
/// # Safety
/// `metadata` points to XLA's metadata structure.
unsafe fn describe(metadata: *mut Metadata) {
    // SAFETY: by the caller's contract; a field is written only where the size covers it.
    unsafe {
        let size = (*metadata).struct_size;
        if size >= offset_of!(Metadata, traits) {
            // The lowest version that has everything used here, and so the longest to be accepted.
            (*metadata).api_version.major = 0;
            (*metadata).api_version.minor = 1;
        }
        if size >= offset_of!(Metadata, traits) + size_of::<u32>() {
            (*metadata).traits = 0;
        }
    }
}

/// Makes an XLA error with a message.
///
/// # Safety
/// `api` points to XLA's functions.
unsafe fn report(api: *const Api, code: c_int, text: &str) -> *mut XlaError {
    let message = CString::new(text.replace('\0', "?")).unwrap_or_default();
    let mut args = ErrorCreateArgs {
        struct_size: offset_of!(ErrorCreateArgs, code) + size_of::<c_int>(),
        extension: null_mut(),
        message: message.as_ptr(),
        code,
    };
    // SAFETY: by the caller's contract; the function exists in every version, and copies the message.
    unsafe {
        match (*api).error_create {
            Some(create) => create(&raw mut args),
            None => std::process::abort(),
        }
    }
}
