/* Stands in for python.exe under Wine, which starts programs of the host but neither waits for them nor learns their
   exit codes: starts %BRIDGE% with a file's path and the words it was given, and ends with the code that it finds there. */

#include <stdio.h>
#include <windows.h>
#include <wchar.h>

int wmain(void)
{
    static wchar_t line[32768], file[MAX_PATH], program[MAX_PATH];
    STARTUPINFOW start = {sizeof(start)};
    PROCESS_INFORMATION started;
    wchar_t *words = GetCommandLineW();

    words = *words == L'"' ? wcschr(words + 1, L'"') + 1 : wcspbrk(words, L" ");
    GetEnvironmentVariableW(L"BRIDGE", program, MAX_PATH);
    GetEnvironmentVariableW(L"BRIDGE_CODES", file, MAX_PATH - 20);
    swprintf(file + wcslen(file), 20, L"\\%lu", GetCurrentProcessId());
    swprintf(line, 32768, L"\"%ls\" \"%ls\"%ls", program, file, words ? words : L"");
    if (!CreateProcessW(program, line, NULL, NULL, TRUE, 0, NULL, NULL, &start, &started))
        return 9009;
    while (GetFileAttributesW(file) == INVALID_FILE_ATTRIBUTES)
        Sleep(20);
    FILE *codes = _wfopen(file, L"r");
    int code = 1;
    fwscanf(codes, L"%d", &code);
    fclose(codes);
    DeleteFileW(file);
    return code;
}
