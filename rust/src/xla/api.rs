//! Part of `xla/ffi/api/c_api.h` that the handlers use, field for field.
//!
//! XLA only ever adds fields at the end, and every structure contains its size: a field is read or written
//! only where that size covers it.

#![allow(clippy::struct_field_names)] // the names are the header's

use std::ffi::{c_char, c_int, c_void};

/// Handler that XLA calls, registered by the address of this function.
pub type Handler = unsafe extern "C" fn(*mut CallFrame) -> *mut Error;

/// `XLA_FFI_Extension_Metadata`
pub(super) const EXTENSION_METADATA: c_int = 1;
/// `XLA_FFI_ExecutionStage_EXECUTE`
pub(super) const STAGE_EXECUTE: c_int = 3;
/// `XLA_FFI_ArgType_BUFFER` and `XLA_FFI_RetType_BUFFER`
pub(super) const BUFFER: c_int = 1;
/// `XLA_FFI_AttrType_SCALAR`
pub(super) const ATTRIBUTE_SCALAR: c_int = 3;
/// `XLA_FFI_AttrType_STRING`
pub(super) const ATTRIBUTE_STRING: c_int = 4;
/// `XLA_FFI_Error_Code_INVALID_ARGUMENT`
pub(super) const INVALID_ARGUMENT: c_int = 3;
/// `XLA_FFI_Error_Code_FAILED_PRECONDITION`
pub(super) const FAILED_PRECONDITION: c_int = 9;
/// `XLA_FFI_Error_Code_INTERNAL`
pub(super) const INTERNAL: c_int = 13;

/// `XLA_FFI_DataType` of the types that operands here may have.
pub(super) mod dtype {
    use std::ffi::c_int;

    pub const PRED: c_int = 1;
    pub const S8: c_int = 2;
    pub const S32: c_int = 4;
    pub const S64: c_int = 5;
    pub const U8: c_int = 6;
    pub const U32: c_int = 8;
    pub const F16: c_int = 10;
    pub const F32: c_int = 11;
    pub const BF16: c_int = 16;
}

/// `XLA_FFI_Error`, which XLA owns.
#[repr(C)]
pub struct Error {
    opaque: [u8; 0],
}

/// `XLA_FFI_ExecutionContext`
#[repr(C)]
pub(super) struct ExecutionContext {
    opaque: [u8; 0],
}

/// `XLA_FFI_Extension_Base`
#[repr(C)]
pub(super) struct Extension {
    pub struct_size: usize,
    pub kind: c_int,
    pub next: *mut Extension,
}

/// `XLA_FFI_Api_Version`
#[repr(C)]
pub(super) struct ApiVersion {
    pub struct_size: usize,
    pub extension: *mut Extension,
    pub major: c_int,
    pub minor: c_int,
}

/// `XLA_FFI_Metadata`, as far as version 0.1 had it.
#[repr(C)]
pub(super) struct Metadata {
    pub struct_size: usize,
    pub api_version: ApiVersion,
    pub traits: u32,
}

/// `XLA_FFI_Metadata_Extension`
#[repr(C)]
pub(super) struct MetadataExtension {
    pub base: Extension,
    pub metadata: *mut Metadata,
}

/// `XLA_FFI_Error_Create_Args`
#[repr(C)]
pub(super) struct ErrorCreateArgs {
    pub struct_size: usize,
    pub extension: *mut Extension,
    pub message: *const c_char,
    pub code: c_int,
}

/// `XLA_FFI_Error_Destroy_Args`
#[repr(C)]
pub(super) struct ErrorDestroyArgs {
    pub struct_size: usize,
    pub extension: *mut Extension,
    pub error: *mut Error,
}

/// `XLA_FFI_Task`
pub(super) type Task = unsafe extern "C" fn(*mut c_void);

/// `XLA_FFI_ThreadPool_Schedule_Args`
#[repr(C)]
pub(super) struct ScheduleArgs {
    pub struct_size: usize,
    pub extension: *mut Extension,
    pub context: *mut ExecutionContext,
    pub task: Task,
    pub data: *mut c_void,
}

/// `XLA_FFI_ThreadPool_NumThreads_Args`
#[repr(C)]
pub(super) struct NumThreadsArgs {
    pub struct_size: usize,
    pub extension: *mut Extension,
    pub context: *mut ExecutionContext,
    pub num_threads: *mut i64,
}

type Unused = *const c_void;

/// `XLA_FFI_Api`, up to the last function that is called.
#[repr(C)]
pub(super) struct Api {
    pub struct_size: usize,
    pub extension: *mut Extension,
    pub api_version: ApiVersion,
    pub internal_api: Unused,
    pub error_create: Option<unsafe extern "C" fn(*mut ErrorCreateArgs) -> *mut Error>,
    pub error_get_message: Unused,
    pub error_destroy: Option<unsafe extern "C" fn(*mut ErrorDestroyArgs)>,
    pub handler_register: Unused,
    pub stream_get: Unused,
    pub type_register: Unused,
    pub execution_context_get: Unused,
    pub state_set: Unused,
    pub state_get: Unused,
    pub device_memory_allocate: Unused,
    pub device_memory_free: Unused,
    pub thread_pool_schedule: Option<unsafe extern "C" fn(*mut ScheduleArgs) -> *mut Error>,
    pub thread_pool_num_threads: Option<unsafe extern "C" fn(*mut NumThreadsArgs) -> *mut Error>,
}

/// `XLA_FFI_Buffer`
#[repr(C)]
pub(super) struct Buffer {
    pub struct_size: usize,
    pub extension: *mut Extension,
    pub dtype: c_int,
    pub data: *mut c_void,
    pub rank: i64,
    pub dims: *mut i64,
}

/// `XLA_FFI_Args` and `XLA_FFI_Rets`, which are alike.
#[repr(C)]
pub(super) struct Values {
    pub struct_size: usize,
    pub extension: *mut Extension,
    pub size: i64,
    pub types: *mut c_int,
    pub values: *mut *mut c_void,
}

/// `XLA_FFI_ByteSpan`
#[repr(C)]
pub(super) struct ByteSpan {
    pub start: *const u8,
    pub len: usize,
}

/// `XLA_FFI_Scalar`
#[repr(C)]
pub(super) struct Scalar {
    pub dtype: c_int,
    pub value: *mut c_void,
}

/// `XLA_FFI_Attrs`
#[repr(C)]
pub(super) struct Attributes {
    pub struct_size: usize,
    pub extension: *mut Extension,
    pub size: i64,
    pub types: *mut c_int,
    pub names: *mut *mut ByteSpan,
    pub values: *mut *mut c_void,
}

/// `XLA_FFI_CallFrame`, as far as version 0.1 had it.
#[repr(C)]
pub struct CallFrame {
    pub(super) struct_size: usize,
    pub(super) extension: *mut Extension,
    pub(super) api: *const Api,
    pub(super) context: *mut ExecutionContext,
    pub(super) stage: c_int,
    pub(super) args: Values,
    pub(super) rets: Values,
    pub(super) attributes: Attributes,
}

#[cfg(all(test, target_pointer_width = "64"))]
mod tests {
    use super::*;
    use std::mem::offset_of;

    #[test]
    fn sizes_and_offsets_are_those_of_the_c_header() {
        // Printed by a C program from the header of jaxlib 0.10.2 (x86-64 Linux).
        assert_eq!(offset_of!(ApiVersion, minor), 20);
        assert_eq!(offset_of!(Metadata, traits), 32);
        assert_eq!(offset_of!(MetadataExtension, metadata), 24);
        assert_eq!(offset_of!(ErrorCreateArgs, code), 24);
        assert_eq!(offset_of!(ErrorDestroyArgs, error), 16);
        assert_eq!(offset_of!(ScheduleArgs, data), 32);
        assert_eq!(offset_of!(NumThreadsArgs, num_threads), 24);
        assert_eq!(offset_of!(Api, error_create), 48);
        assert_eq!(offset_of!(Api, error_destroy), 64);
        assert_eq!(offset_of!(Api, thread_pool_schedule), 136);
        assert_eq!(offset_of!(Api, thread_pool_num_threads), 144);
        assert_eq!(offset_of!(Buffer, dims), 40);
        assert_eq!(offset_of!(Values, values), 32);
        assert_eq!(offset_of!(Attributes, values), 40);
        assert_eq!(offset_of!(CallFrame, stage), 32);
        assert_eq!(offset_of!(CallFrame, attributes), 120);
        assert_eq!(size_of::<Attributes>(), 48);
    }
}
