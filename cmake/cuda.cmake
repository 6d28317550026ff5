# NVIDIA GPUs, in one of three ways (docs/cuda.md):
#   LUMUON_CUDA=auto       with nvcc where a toolkit is found, else not at all
#   LUMUON_CUDA=off        not at all
#   LUMUON_CUDA=emulated   the same sources by the C++ compiler, run by the CPU: for specs
# Sets CUDA_SOURCES (of the engine), CUDA_OBJECTS, CUDA_LIBRARIES and CUDA_SUMMARY.
set(LUMUON_CUDA auto CACHE STRING "NVIDIA GPUs: auto, off, or emulated by the CPU")
set_property(CACHE LUMUON_CUDA PROPERTY STRINGS auto off emulated)
set(LUMUON_CUDA_ARCHITECTURES "80;90" CACHE STRING "GPUs to compile for; later ones get the last one's PTX")
if(NOT LUMUON_CUDA MATCHES "^(auto|off|emulated)$")
  message(FATAL_ERROR "LUMUON_CUDA is '${LUMUON_CUDA}'; it may be auto, off or emulated")
endif()

set(CUDA_SOURCES engine/backend/no_cuda.c)
set(CUDA_OBJECTS "")
set(CUDA_LIBRARIES "")
set(CUDA_SUMMARY "without CUDA: LUMUON_CUDA=off")
file(GLOB CUDA_KERNELS CONFIGURE_DEPENDS kernels/cuda/*.cu)
set(CUDA_BACKEND engine/backend/cuda.c engine/backend/cuda_memory.c engine/backend/cuda_side.c engine/comm/nccl.c
    engine/backend/cublaslt.c engine/backend/cuda_graph.c engine/backend/library.c)
# Random numbers are the CPU's to the last bit: see math/random.h.
set(CUDA_FLAGS_random --fmad=false)
# Files that use what only sm_90a has (wgmma): compiled for it in place of sm_90.
set(CUDA_SM90A symmetric_wgmma)

if(LUMUON_CUDA STREQUAL "auto")
  find_program(NVCC nvcc HINTS ENV CUDACXX ENV CUDA_PATH ENV CUDA_HOME
               PATHS /usr/local/cuda /opt/cuda PATH_SUFFIXES bin)
  if(DEFINED ENV{CUDACXX} AND EXISTS "$ENV{CUDACXX}")
    set(NVCC "$ENV{CUDACXX}")
  endif()
  include(CheckLanguage)
  check_language(CXX)
  if(NVCC)
    get_filename_component(CUDA_ROOT "${NVCC}" REALPATH)
    get_filename_component(CUDA_ROOT "${CUDA_ROOT}/../.." ABSOLUTE)
    find_path(CUDA_INCLUDE cuda_runtime.h HINTS ${CUDA_ROOT} PATH_SUFFIXES include targets/x86_64-linux/include
              NO_DEFAULT_PATH)
    find_library(CUDART_STATIC libcudart_static.a HINTS ${CUDA_ROOT}
                 PATH_SUFFIXES lib64 lib targets/x86_64-linux/lib NO_DEFAULT_PATH)
    execute_process(COMMAND ${NVCC} --version OUTPUT_VARIABLE NVCC_VERSION ERROR_QUIET)
    string(REGEX MATCH "release ([0-9.]+)" NVCC_VERSION "${NVCC_VERSION}")
    set(NVCC_VERSION "${CMAKE_MATCH_1}")
  endif()
  if(NOT NVCC)
    set(CUDA_SUMMARY "CUDA is missing, for NVIDIA GPUs: nvcc is not in PATH, CUDACXX or /usr/local/cuda")
  elseif(NOT CUDA_INCLUDE OR NOT CUDART_STATIC OR NVCC_VERSION STREQUAL "")
    set(CUDA_SUMMARY "CUDA is left out: ${NVCC} works not, or has no cuda_runtime.h and libcudart_static.a beside it")
  elseif(NVCC_VERSION VERSION_LESS 12)
    set(CUDA_SUMMARY "CUDA is left out: ${NVCC} is ${NVCC_VERSION}, 12.0 is the oldest that will do")
  elseif(NOT CMAKE_CXX_COMPILER)
    set(CUDA_SUMMARY "CUDA is left out: nvcc needs a C++ compiler: apt-get install g++")
  else()
    set(CUDA_SUMMARY "CUDA ${NVCC_VERSION} (${NVCC})")
    set(CUDA_SOURCES ${CUDA_BACKEND})
    # C++ is nvcc's host compiler's business; the objects need no C++ library.
    set(flags -std=c++20 -O3 --expt-relaxed-constexpr -Wno-deprecated-gpu-targets
        -Xcompiler=-fPIC,-fvisibility=hidden,-fno-exceptions,-fno-rtti,-fno-threadsafe-statics,-Wall,-Wextra,-Wno-unused-parameter
        -D_GNU_SOURCE)
    foreach(folder engine/include engine kernels)
      list(APPEND flags -I${CMAKE_SOURCE_DIR}/${folder})
    endforeach()
    if(LUMUON_WERROR)
      list(APPEND flags -Werror=all-warnings -Xcompiler=-Werror)
    endif()
    list(GET LUMUON_CUDA_ARCHITECTURES -1 last)
    foreach(kernel ${CUDA_KERNELS})
      get_filename_component(name ${kernel} NAME_WE)
      set(code "")
      foreach(arch ${LUMUON_CUDA_ARCHITECTURES})
        set(suffix "")
        if(arch EQUAL 90 AND name IN_LIST CUDA_SM90A)
          set(suffix a)
        endif()
        list(APPEND code -gencode=arch=compute_${arch}${suffix},code=sm_${arch}${suffix})
      endforeach()
      list(APPEND code -gencode=arch=compute_${last},code=compute_${last})
      set(object ${CMAKE_BINARY_DIR}/cuda/${name}.o)
      add_custom_command(
        OUTPUT ${object}
        COMMAND ${CMAKE_COMMAND} -E make_directory ${CMAKE_BINARY_DIR}/cuda
        COMMAND ${NVCC} ${flags} ${CUDA_FLAGS_${name}} ${code} -MD -MF ${object}.d -MT ${object} -c ${kernel} -o ${object}
        DEPENDS ${kernel} DEPFILE ${object}.d COMMENT "Building CUDA object ${name}.o" VERBATIM)
      list(APPEND CUDA_OBJECTS ${object})
    endforeach()
    add_custom_target(cuda_objects DEPENDS ${CUDA_OBJECTS})
    set_source_files_properties(${CUDA_OBJECTS} PROPERTIES EXTERNAL_OBJECT TRUE GENERATED TRUE)
    set(CUDA_INCLUDE_DIRECTORIES ${CUDA_INCLUDE})
    set(CUDA_LIBRARIES ${CUDART_STATIC} Threads::Threads rt ${CMAKE_DL_LIBS})
  endif()
elseif(LUMUON_CUDA STREQUAL "emulated")
  enable_language(CXX)
  set(CMAKE_CXX_STANDARD 20)
  set(CUDA_SUMMARY "CUDA emulated by the CPU, for specs")
  set(CUDA_SOURCES ${CUDA_BACKEND})
  set(CUDA_INCLUDE_DIRECTORIES ${CMAKE_SOURCE_DIR}/kernels/cuda/emulated)
  file(GLOB EMULATED CONFIGURE_DEPENDS kernels/cuda/emulated/*.c)
  set_source_files_properties(${CUDA_KERNELS} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS "-xc++")
  add_library(cuda_kernels OBJECT ${CUDA_KERNELS} ${EMULATED})
  target_include_directories(cuda_kernels PRIVATE ${CUDA_INCLUDE_DIRECTORIES})
  target_link_libraries(cuda_kernels PRIVATE lumuon_flags)
  # -fsanitize=thread: calls of emulated/races.c, which links in the place of its library
  set(EMULATED_FLAGS -fno-exceptions -fno-rtti -Wno-unused-parameter -Wno-unknown-pragmas -fsanitize=thread)
  target_compile_options(cuda_kernels PRIVATE -ffp-contract=fast $<$<COMPILE_LANGUAGE:CXX>:${EMULATED_FLAGS}>)
  set_source_files_properties(kernels/cuda/random.cu PROPERTIES COMPILE_OPTIONS "-xc++;-ffp-contract=off")
  set(CUDA_OBJECTS $<TARGET_OBJECTS:cuda_kernels>)
  set(CUDA_LIBRARIES ${CMAKE_DL_LIBS})
endif()

# The checks of the emulation itself: spec/emulated_spec.lua
if(LUMUON_CUDA STREQUAL "emulated")
  foreach(program checks warpgroups)
    set_source_files_properties(spec/emulated/${program}.cu PROPERTIES LANGUAGE CXX COMPILE_OPTIONS "-xc++")
    add_executable(emulated_${program} spec/emulated/${program}.cu ${EMULATED})
    target_include_directories(emulated_${program} PRIVATE ${CUDA_INCLUDE_DIRECTORIES})
    target_link_libraries(emulated_${program} PRIVATE lumuon_flags Threads::Threads m)
    target_compile_options(emulated_${program} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:${EMULATED_FLAGS}>)
    set_target_properties(emulated_${program} PROPERTIES LINKER_LANGUAGE C)
  endforeach()
endif()

# scripts/gpu-check, packed for another machine.
add_custom_target(gpu_bundle
  COMMAND ${CMAKE_COMMAND} -DLUMUON=$<TARGET_FILE:lumuon> -DSOURCE=${CMAKE_SOURCE_DIR} -DBUILD=${CMAKE_BINARY_DIR}
          -P ${CMAKE_SOURCE_DIR}/cmake/gpu-bundle.cmake
  DEPENDS lumuon VERBATIM)
