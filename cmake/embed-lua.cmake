# Write a C file that carries Lua modules as bytes: cmake -DFILES=a.lua;b.lua -DOUT= -P
# A module's name is its path below the last folder called `lua`, with dots: lumuon.models.gpt.
set(externs "")
set(table "")
set(i 0)
foreach(file ${FILES})
  string(REGEX REPLACE "^.*/lua/" "" name ${file})
  string(REGEX REPLACE "\\.lua$" "" name ${name})
  string(REGEX REPLACE "/init$" "" name ${name})
  string(REPLACE "/" "." name ${name})
  string(APPEND externs
    "__asm__(\".section .rodata\\nlm__lua_${i}: .incbin \\\"${file}\\\"\\nlm__lua_${i}_end: .byte 0\\n.previous\");\n"
    "extern const char lm__lua_${i}[], lm__lua_${i}_end[];\n")
  string(APPEND table "    {\"${name}\", lm__lua_${i}, lm__lua_${i}_end},\n")
  math(EXPR i "${i} + 1")
endforeach()
file(WRITE ${OUT}
"/* Made by the build: the Lua modules inside the executable. */
#include \"host/host.h\"

${externs}
const lm__embedded lm__modules[] = {
${table}    {0, 0, 0},
};
")
