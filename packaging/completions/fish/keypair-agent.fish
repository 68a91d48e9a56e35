# Completion of keypair-agent(8) for fish.

# The words that are neither options nor the value of --config; the program's name is the first.
function __keypair_agent_words
    set -l skip 0
    for word in (commandline -opc)
        if test $skip = 1
            set skip 0
        else if test "$word" = --config
            set skip 1
        else if not string match -q -- '-?*' $word
            echo -- $word
        end
    end
end

# Whether no command stands there yet.
function __keypair_agent_needs_command
    test (count (__keypair_agent_words)) = 1
end

# Whether the command is one of these.
function __keypair_agent_command
    set -l words (__keypair_agent_words)
    test (count $words) -ge 2; and contains -- $words[2] $argv
end

# Whether the command is one of these, and has no operand yet.
function __keypair_agent_needs_operand
    test (count (__keypair_agent_words)) = 2; and __keypair_agent_command $argv
end

complete -c keypair-agent -f

complete -c keypair-agent -n __keypair_agent_needs_command -a run -d 'The daemon: receive, decide, apply, report'
complete -c keypair-agent -n __keypair_agent_needs_command -a apply -d 'Carry out the command in a file, print its result'
complete -c keypair-agent -n __keypair_agent_needs_command -a plan -d 'Show what apply would do, as a diff'
complete -c keypair-agent -n __keypair_agent_needs_command -a password-auth -d 'Allow or forbid SSH password login'
complete -c keypair-agent -n __keypair_agent_needs_command -a detach -d 'Take the bound key pair out'
complete -c keypair-agent -n __keypair_agent_needs_command -a undo -d 'Take back all that is the agent\'s'
complete -c keypair-agent -n __keypair_agent_needs_command -a status -d 'What is bound and how the agent is'
complete -c keypair-agent -n __keypair_agent_needs_command -a check -d 'Whether an attach that forbids passwords would be accepted'

complete -c keypair-agent -n '__keypair_agent_needs_operand apply plan' -F
complete -c keypair-agent -n '__keypair_agent_needs_operand apply plan' -a - -d 'Standard input'
complete -c keypair-agent -n '__keypair_agent_needs_operand password-auth' -a 'yes no'

complete -c keypair-agent -l config -r -F -d 'The configuration'
complete -c keypair-agent -n '__keypair_agent_command status check' -l json -d 'One line of JSON'
complete -c keypair-agent -n '__keypair_agent_command check' -l image -d 'What a clone of this guest would carry along'
complete -c keypair-agent -s h -l help -d 'Print the usage'
complete -c keypair-agent -n __keypair_agent_needs_command -s V -l version -d 'Print the version'
