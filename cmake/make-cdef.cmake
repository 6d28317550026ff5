# Write a Lua module that hands ffi.cdef the preprocessed header: cmake -DCC= -DHEADER= -DOUT= -P
execute_process(COMMAND ${CC} -E -P -DLM_FFI -x c ${HEADER} OUTPUT_VARIABLE text RESULT_VARIABLE result)
if(NOT result EQUAL 0)
  message(FATAL_ERROR "preprocessing ${HEADER} failed")
endif()
file(WRITE ${OUT} "-- Made from engine/include/lumuon.h by the build.\nrequire('ffi').cdef[[\n${text}]]\n")
