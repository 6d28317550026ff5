# What Lumuon stands on. Everything is looked for before anything is complained about, so that one
# configure run says all there is to get.
set(summary "")
set(missing "")

macro(report name found version purpose package)
  if(${found})
    string(APPEND summary "\n    ${name} ${version}")
  else()
    string(APPEND summary "\n    ${name} is missing, ${purpose}: apt-get install ${package}")
  endif()
endmacro()

macro(need name found version purpose package)
  report("${name}" "${found}" "${version}" "${purpose}" "${package}")
  if(NOT ${found})
    list(APPEND missing ${package})
  endif()
endmacro()

set(OPENMP_PACKAGE gcc)
if(CMAKE_C_COMPILER_ID MATCHES "Clang")
  set(OPENMP_PACKAGE libomp-dev)
endif()

find_package(Threads REQUIRED)
find_package(PkgConfig QUIET)
find_package(OpenMP QUIET COMPONENTS C)
# Not find_package(dnnl): Debian's dnnl-config.cmake asks for OpenCL's headers, which nothing here needs.
find_path(DNNL_INCLUDE_DIR dnnl.h)
find_library(DNNL_LIBRARY dnnl)
set(DNNL_USABLE OFF)
if(DNNL_INCLUDE_DIR AND DNNL_LIBRARY)
  set(DNNL_USABLE ON)
  find_file(DNNL_VERSION_HEADER NAMES oneapi/dnnl/dnnl_version.h dnnl_version.h PATHS ${DNNL_INCLUDE_DIR})
  file(STRINGS "${DNNL_VERSION_HEADER}" numbers REGEX "#define DNNL_VERSION_(MAJOR|MINOR|PATCH) +[0-9]+")
  string(REGEX REPLACE "[^0-9;]+" "" numbers "${numbers}")
  list(JOIN numbers "." DNNL_VERSION)
  add_library(DNNL::dnnl UNKNOWN IMPORTED)
  set_target_properties(DNNL::dnnl PROPERTIES IMPORTED_LOCATION "${DNNL_LIBRARY}"
                                              INTERFACE_INCLUDE_DIRECTORIES "${DNNL_INCLUDE_DIR}")
endif()
if(PKG_CONFIG_FOUND)
  pkg_check_modules(LUAJIT QUIET luajit)
  pkg_check_modules(JANSSON QUIET IMPORTED_TARGET jansson)
  pkg_check_modules(LIBEDIT QUIET IMPORTED_TARGET libedit)
endif()
find_library(LUAJIT_STATIC NAMES libluajit-5.1.a HINTS ${LUAJIT_LIBRARY_DIRS})
set(LUAJIT_USABLE OFF)
if(LUAJIT_FOUND AND LUAJIT_STATIC)
  set(LUAJIT_USABLE ON)
endif()

need(pkg-config PKG_CONFIG_FOUND "${PKG_CONFIG_VERSION_STRING}" "to find the others" pkg-config)
need(LuaJIT LUAJIT_USABLE "${LUAJIT_VERSION} (static)" "the language of recipes" libluajit-5.1-dev)
need(oneDNN DNNL_USABLE "${DNNL_VERSION}" "products of matrices" libdnnl-dev)
need(OpenMP OpenMP_C_FOUND "${OpenMP_C_VERSION}" "threads" ${OPENMP_PACKAGE})
need(Jansson JANSSON_FOUND "${JANSSON_VERSION}" "JSON" libjansson-dev)
need(libedit LIBEDIT_FOUND "${LIBEDIT_VERSION}" "line editing" libedit-dev)

# Optional: without it there is one process.
if(LUMUON_MPI)
  find_package(MPI QUIET COMPONENTS C)
  report(MPI MPI_C_FOUND "${MPI_C_VERSION}" "for runs of several processes" "libopenmpi-dev openmpi-bin")
endif()

# Wanted at run time only: missing ones do not stop the build.
find_program(LUAJIT_PROGRAM luajit)
find_program(BUSTED_PROGRAM busted)
find_path(FORTUNES_FOLDER fortunes PATHS /usr/share/games/fortunes NO_DEFAULT_PATH)
report(luajit LUAJIT_PROGRAM "(${LUAJIT_PROGRAM})" "to use Lumuon without its executable" luajit)
report(Busted BUSTED_PROGRAM "(${BUSTED_PROGRAM})" "for `lumuon test`" lua-busted)
report(fortunes FORTUNES_FOLDER "(${FORTUNES_FOLDER})" "the text of recipes/fortune.lua" fortunes)

message(STATUS "Lumuon ${PROJECT_VERSION}, ${CMAKE_BUILD_TYPE}, ${CMAKE_C_COMPILER_ID} ${CMAKE_C_COMPILER_VERSION}"
               ", ${CMAKE_SYSTEM_PROCESSOR}; it stands on${summary}")
if(missing)
  list(JOIN missing " " missing)
  message(FATAL_ERROR "What the build needs is not all there. On Debian or Ubuntu:\n"
                      "  apt-get install ${missing}")
endif()
