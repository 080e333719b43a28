-- restore_table() puts the rows and checks of an adopted queue back, in the way back of the step "queue".
select;
